// The page's own words, in two languages.

const TEXTS = {
  en: { model: "Model", key: "Key", reset: "New chat", compare: "Side by side", settings: "Settings", system: "System",
        temperature: "Temperature", tokens: "Most tokens", probabilities: "Token probabilities",
        send: "Send", stop: "Stop", write: "Write a message. Enter sends, Shift+Enter breaks the line.",
        stopped: "stopped", length: "cut off: no tokens left", speed: "tokens/s", other: "中文",
        answer: "Answer. The arrow keys go from token to token." },
  zh: { model: "模型", key: "密钥", reset: "新对话", compare: "并排比较", settings: "设置", system: "系统提示",
        temperature: "温度", tokens: "最多词元", probabilities: "词元概率",
        send: "发送", stop: "停止", write: "输入消息。回车发送，Shift+回车换行。",
        stopped: "已停止", length: "已截断：词元用完", speed: "词元/秒", other: "English",
        answer: "回答。用方向键逐个查看词元。" },
};
let language = navigator.language.startsWith("zh") ? "zh" : "en";

export const text = (name) => TEXTS[language][name];
export const language_now = () => language;
export function other_language() { language = language === "en" ? "zh" : "en"; }
