"""Things that hardly any folder of documents says: what questions without an answer are made of.

Only those whose rare words occur nowhere in the documents at hand are asked (see unanswerable.py).
"""

from __future__ import annotations

GENERAL_EN = (
    "How many strings does a classical guitar have?", "Who painted the ceiling of the Sistine Chapel?",
    "What is the melting point of tungsten?", "Which river flows through Budapest?", "Who composed The Magic Flute?",
    "How tall is Kilimanjaro?", "In which year did the Titanic sink?", "What is the currency of Mongolia?",
    "Which planet has the moons Phobos and Deimos?", "Who wrote Wuthering Heights?",
    "How long is a marathon in kilometres?", "What do koalas eat?",
    "Which vitamin does sunlight produce in the skin?", "Who discovered penicillin?",
    "What is the chemical symbol of antimony?", "Which country hosted the Winter Olympics in Lillehammer?",
    "How many chambers does a frog's heart have?", "What is the main ingredient of guacamole?",
    "Who was the first chancellor of Germany after reunification?", "What is the gestation period of an elephant?",
    "Which spice gives paella its yellow colour?", "How do I knead sourdough?", "Which gland produces insulin?",
    "What is the offside rule in soccer?", "Who directed the film Rashomon?",
    "Which tyre pressure does a Vespa need?", "How do I prune a rose in winter?",
    "What is the speed limit on Norwegian motorways?", "Who founded the Ottoman dynasty?",
    "How many syllables does a haiku have?", "Which mineral is the hardest on the Mohs scale?",
    "When does the cherry blossom in Kyoto begin?", "What is the dosage of ibuprofen for children?",
    "Which airline flies from Lima to Cusco?", "How much caffeine is in an espresso?",
    "What is the tallest building in Dubai?",
)  # fmt: skip

GENERAL_ZH = (
    "蒙古国的货币是什么？", "青霉素是谁发现的？", "钨的熔点是多少度？", "泰坦尼克号是哪一年沉没的？",
    "小提琴有几根弦？", "布达佩斯被哪条河流穿过？", "马拉松全程多少公里？", "考拉吃什么？",
    "《呼啸山庄》的作者是谁？", "锑的化学符号是什么？", "乞力马扎罗山有多高？", "哪个腺体分泌胰岛素？",
    "迪拜最高的建筑叫什么？", "足球的越位规则是什么？", "布洛芬的儿童剂量是多少？", "摩氏硬度最高的矿物是什么？",
    "一杯浓缩咖啡含多少咖啡因？", "电影《罗生门》的导演是谁？", "大象的妊娠期有多长？", "挪威高速公路限速多少？",
    "京都的樱花什么时候开？", "如何修剪冬天的玫瑰？", "维生素D由什么产生？", "莫扎特写过哪部歌剧？",
    "如何给手机更换电池？", "量子计算机需要多低的温度？", "哪种香料使海鲜饭变黄？", "火星有哪两颗卫星？",
)  # fmt: skip

THINGS_EN = (
    "the Eiffel Tower", "the accordion", "Lake Titicaca", "the giraffe", "the Suez Canal", "porcelain", "Antarctica",
    "the harpsichord", "the Colosseum", "basil", "the sewing machine", "Iceland", "the flamingo", "the trombone",
    "the Panama Canal", "saffron", "the Great Barrier Reef", "the bassoon", "Machu Picchu", "the walrus",
)  # fmt: skip
ASKED_EN = (
    "Where can {} be found?", "How old is {}?", "Who first described {}?", "What is {} famous for?",
    "How much does {} weigh?",
)  # fmt: skip

THINGS_ZH = (
    "埃菲尔铁塔", "手风琴", "的的喀喀湖", "长颈鹿", "苏伊士运河", "南极洲", "古罗马斗兽场", "罗勒", "缝纫机", "冰岛",
    "火烈鸟", "长号", "巴拿马运河", "藏红花", "大堡礁", "巴松管", "马丘比丘", "海象", "核磁共振", "区块链", "乌龙球",
    "摩托艇", "葡萄柚",
)  # fmt: skip
ASKED_ZH = ("{}在哪里？", "{}有多重？", "{}最早是谁描述的？", "{}以什么闻名？", "{}出现在哪一年？", "{}一共有多少？")

LIBRARIES = (
    "django.shortcuts.redirect", "flask.jsonify", "scipy.optimize.linprog", "matplotlib.pyplot.scatter",
    "redis.Redis.hset", "sqlalchemy.create_engine", "sklearn.cluster.KMeans", "cv2.cvtColor",
    "tensorflow.keras.Sequential", "boto3.client", "spacy.blank", "networkx.pagerank", "pydantic.BaseModel",
    "celery.chord", "plotly.express.treemap", "seaborn.violinplot", "fastapi.Depends", "polars.scan_csv",
    "kafka.KafkaProducer", "gensim.models.Word2Vec", "pygame.mixer.Sound", "kivy.clock.Clock", "dask.delayed",
    "xgboost.XGBRegressor", "selenium.webdriver.Firefox", "scrapy.Spider", "bokeh.plotting.figure", "sympy.integrate",
    "nltk.word_tokenize", "paramiko.SSHClient",
)  # fmt: skip

ARGUMENTS = (
    "voltage", "antialiasing", "bitrate", "epochs", "latitude", "gravity", "dropout", "playlist", "currency", "zoom",
    "humidity", "watermark", "quantile", "perplexity", "shutter", "hyperlink", "tenant", "coupon", "vibrato",
    "rainfall", "replicas", "opacity", "brightness", "learning_rate", "n_clusters", "api_token", "gpu_index",
    "page_margin",
)  # fmt: skip

DOINGS = (
    "plays an MP3 through the loudspeaker", "blurs the background of a photograph", "recognizes a spoken sentence",
    "books a seat on a train", "solves a system of differential equations", "detects faces in a webcam image",
    "translates a menu into Italian", "charges a customer's credit card", "predicts tomorrow's temperature",
    "draws an isometric map with contour lines", "posts a tweet with a picture", "aligns two genome sequences",
    "reads the pulse from a smartwatch", "mines a cryptocurrency block", "renders a ray-traced teapot",
    "transposes a melody by a semitone", "sends a message over WhatsApp", "prints a barcode on a thermal printer",
    "queries a MongoDB collection", "deploys a container to Kubernetes", "simulates the orbit of a satellite",
    "fits a logistic regression to survey data", "removes red eyes from a portrait", "measures the pH of a solution",
    "steers a drone to a waypoint", "converts a PowerPoint deck to video", "subscribes to an MQTT broker",
    "computes the eigenvectors of a sparse graph Laplacian", "fills in a tax declaration",
    "unlocks a phone by fingerprint", "generates a sudoku with a unique solution", "dims the lamps in the kitchen",
    "colours a black and white movie", "finds the cheapest flight", "tunes a ukulele", "scans a passport with OCR",
)  # fmt: skip
