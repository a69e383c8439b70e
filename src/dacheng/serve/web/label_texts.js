// The labelling page's own words, in two languages.

const percent = (value) => `${Math.round(100 * value)}%`;

const TEXTS = {
  en: {
    other: "中文", who: "Your name, as it stands beside your labels", begin: "Begin", prompt: "Prompt", first: "First reply",
    second: "Second reply", question: "Which reply is better?", note: "Why (optional)", undo: "Take back my last one",
    agreement: "Agreement so far", lost: "The connection is lost. Nothing was written; try again.",
    keys: "Keys: 1 2 3 4 5 for the five choices, S to skip, U to take back. The two replies stand in an order of chance.",
    choices: { first2: "first is much better", first1: "first is better", tie: "equally good", second1: "second is better",
      second2: "second is much better", skip: "cannot say" },
    far: (done, total) => `${done} of ${total} labelled`, all: "All pairs are labelled. Thank you!",
    roles: { system: "system", user: "user", assistant: "assistant", tool: "tool" },
    pairs: (p) => `${p.labelled} of ${p.all} pairs labelled, ${p.by_two_or_more} by two or more; in ${p.agreed} of these all agree`,
    alpha: (a) => (a ? `Krippendorff's alpha: ${a.estimate.toFixed(2)} (95%: ${a.low.toFixed(2)} to ${a.high.toFixed(2)})`
      : "Krippendorff's alpha: not defined yet"),
    kappa: (k) => `${k.annotators.join(" and ")}: Cohen's kappa ${k.kappa === null ? "not defined" : k.kappa.toFixed(2)} on ${k.pairs} pairs, equal in ${percent(k.agreement)}`,
    one: (name, a) => `${name}: ${a.labels} labels, ${a.ties} ties, ${a.skips} skipped`
      + (a.first ? `; chose the first in ${percent(a.first.estimate)}` : "") + (a.longer ? `, the longer in ${percent(a.longer.estimate)}` : ""),
  },
  zh: {
    other: "English", who: "您的名字（会写在您的标注旁）", begin: "开始", prompt: "提示", first: "第一个回答", second: "第二个回答",
    question: "哪个回答更好？", note: "理由（可不填）", undo: "撤回上一个标注", agreement: "目前的一致性",
    lost: "连接已断开，什么都没有写入，请重试。",
    keys: "按键：1 2 3 4 5 对应五个选项，S 跳过，U 撤回。两个回答的先后是随机的。",
    choices: { first2: "第一个好得多", first1: "第一个较好", tie: "一样好", second1: "第二个较好", second2: "第二个好得多",
      skip: "无法判断" },
    far: (done, total) => `已标注 ${done} / ${total}`, all: "全部标注完毕，谢谢！",
    roles: { system: "系统", user: "用户", assistant: "助手", tool: "工具" },
    pairs: (p) => `共 ${p.all} 对，已标注 ${p.labelled} 对，其中 ${p.by_two_or_more} 对由两人以上标注，${p.agreed} 对全体一致`,
    alpha: (a) => (a ? `Krippendorff α：${a.estimate.toFixed(2)}（95%：${a.low.toFixed(2)} 至 ${a.high.toFixed(2)}）`
      : "Krippendorff α：尚无定义"),
    kappa: (k) => `${k.annotators.join(" 与 ")}：Cohen κ ${k.kappa === null ? "无定义" : k.kappa.toFixed(2)}，共同 ${k.pairs} 对，相同 ${percent(k.agreement)}`,
    one: (name, a) => `${name}：${a.labels} 个标注，${a.ties} 个平局，${a.skips} 个跳过`
      + (a.first ? `；选第一个 ${percent(a.first.estimate)}` : "") + (a.longer ? `，选较长的 ${percent(a.longer.estimate)}` : ""),
  },
};
let language = navigator.language.startsWith("zh") ? "zh" : "en";

export const text = (name) => TEXTS[language][name];
export const language_now = () => language;
export function other_language() { language = language === "en" ? "zh" : "en"; }
