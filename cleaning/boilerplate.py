"""What a web page says around its text: navigation, sharing, copyright, credits of the editors.

Only whole short lines go, and tails of a paragraph that nothing else looks like. A sentence about copyright stays.
"""

import re

SPACE = r"[ \t\u3000]*"
ITEM = (
    r"(?:网站)?(?:首页|主页|登录|注册|关于我们|联系我们|网站地图|版权声明|免责声明|隐私政策|隐私声明|友情链接|广告服务|"
    r"招聘信息|加入我们|帮助中心|意见反馈|收藏本站|设为首页|加入收藏|手机版|返回首页|返回顶部|Home|About|Contact|Login)"
)
BUTTON = r"(?:分享|收藏|点赞|评论|转发|举报|打印|关闭(?:窗口)?|投诉|复制链接)"
NAMES = r"[^\n，。；！？|｜>＞»›/·]{1,12}"
LINES = [
    # where the page is
    rf"(?:您?(?:现在|当前)?(?:所在)?(?:的)?位置{SPACE}[:：].{{1,60}}[>＞»›/\-].*|当前位置{SPACE}[:：].{{1,80}})",
    rf"(?:首页|主页|Home)(?:{SPACE}(?:>+|＞|»|›|&gt;|→){SPACE}{NAMES}){{1,8}}{SPACE}(?:>+|＞|»|›)?",
    # bars of links
    rf"(?:{NAMES}{SPACE}[|｜·]{SPACE})*{ITEM}(?:{SPACE}[|｜·]{SPACE}{NAMES})+",
    rf"(?:{ITEM}[ \t\u3000]+){{1,}}{ITEM}",
    rf"{ITEM}",
    # previous, next, more, sharing
    r"(?:上一[篇页条章]|下一[篇页条章])(?:新闻|文章)?(?:[:：].{0,60})?",
    r"(?:上一[篇页条章])[ \t|｜/]+(?:返回)?(?:目录|列表)?[ \t|｜/]*(?:下一[篇页条章])",
    r"(?:[【\[（(<《]?(?:点击|查看|阅读|展开|继续阅读|点此|点这里)(?:此处|这里)?(?:阅读|查看|展开)?(?:全文|更多|详情|原文|剩余全文|大图)"
    r"(?:内容)?(?:>+|»|\.{2,}|…+)?[】\]）)>》]?[!！。]?)",
    r"(?:分享(?:到|至)|分享本文|一键分享|扫一扫)(?:[:：].{0,50}|[ \t].{0,40})?",
    rf"{BUTTON}(?:[ \t|｜/·]+{BUTTON})+",
    r"(?:热门(?:文章|推荐|标签)|猜你喜欢|友情链接|网友评论|发表评论|我要评论)[:：]?",
    r"[（(【\[]?(?:阅读|浏览|点击)(?:次数|量|数)?[:：][ \t]*[0-9,.万]+(?:次)?[）)】\]]?",
    r"(?:字体|字号)[:：]?[ \t]*[【\[（(]?(?:大|小|放大)[ \t|/]*(?:中|正常)?[ \t|/]*(?:小|大|缩小)[】\]）)]?.{0,10}",
    # who follows whom
    r"(?:欢迎|请|快来|长按|扫码|扫描二维码|微信扫一扫)[^\n。]{0,12}(?:关注|订阅|添加)[^\n。]{0,16}(?:公众号|微信号|二维码|官方微信|微博|账号)[^\n]{0,24}",
    r"(?:点击(?:上方|下方)?|长按识别|扫描|识别|扫一扫)(?:蓝字|图中|上方|下方|以下)?[^\n。]{0,8}(?:关注(?:我们)?|二维码)[^\n]{0,16}",
    # origin and rights
    r"[（(【]?(?:文章|本文|信息|稿件|内容|图片|资料)?(?:来源|出处)(?:于)?[:：][^\n。]{1,30}[）)】]?",
    r"[（(【]?(?:本文)?(?:转载自|转自|摘自|原载于?)[:：]?[^\n。]{1,40}[）)】]?",
    r"(?:如需)?(?:转载|引用)[^\n。]{0,12}(?:请|须|务必)(?:注明|保留|标明|联系)[^\n]{0,50}",
    r"未经[^\n。]{0,16}(?:许可|授权|同意|允许)[^\n。]{0,12}(?:不得|禁止|严禁|请勿)[^\n。]{0,10}"
    r"(?:转载|摘编|镜像|采集)[^\n。]{0,24}[。！]?",
    r"(?:本站|本网|本文)(?:所有|全部)?[^\n。]{0,12}(?:版权|著作权)[^\n。]{0,6}(?:归|属于)[^\n]{0,40}",
    r"(?:[Cc]opyright|COPYRIGHT|©|\([cC]\))[^\n]{0,24}(?:19|20)\d\d[^\n]{0,90}",
    r"[^\n。]{0,30}(?:版权所有|All [Rr]ights [Rr]eserved\.?)(?:[ \t:：©|,，]|$)[^\n。]{0,60}",
    r"[^\n。，]{0,24}(?:ICP[备证]|公网安备)[ \t]*[0-9]{5,14}号?[^\n。]{0,40}",
    r"[（(【\[]?(?:责任编辑|责编|编辑|实习编辑|值班编辑|审核|校对|美编|作者|记者|文/图|图/文)[:：][^\n。，]{1,20}[）)】\]]?",
    r"(?:发布|更新|发表)(?:时间|日期|于)[:：][ \t]*\d{2,4}[-/年.]\d{1,2}[^\n]{0,30}",
]
BAR = re.compile(rf"{SPACE}(?:{'|'.join(LINES)}){SPACE}")
MANY_BREAKS = re.compile(r"\n{3,}")
LONGEST_BAR, LONGEST_TAIL = 130, 45  # characters
# A cheap look: a line without any of these has nothing to take out. Each begins with a plain character, for speed.
HINT = re.compile(
    "首页|主页|位置|登录|注册|关于我们|联系我们|网站地图|声明|隐私|广告服务|招聘信息|加入|帮助中心|意见反馈|收藏|"
    "手机版|返回|上一|下一|全文|更多|详情|原文|大图|分享|扫|热门|猜你|友情|评论|阅读|浏览|点击|字体|字号|关注|"
    "订阅|二维码|来源|出处|转载|转自|摘自|原载|未经|版权|著作权|opyright|COPYRIGHT|©|ights |ICP|网安备|编辑|责编|"
    "审核|校对|美编|作者|记者|文/图|图/文|发布|更新|发表|Home|About|Contact|Login|点赞|转发|举报|打印|关闭|投诉|"
    "原标题|完[）)】]"
)
TAIL = re.compile(
    r"[ \t]*(?:[（(【\[](?:责任编辑|责编|编辑|实习编辑|值班编辑|记者|完|来源|转载自|转自|摘自|原标题)"
    r"(?:[:：/ ][^\n（()）【】\[\]]{1,30})?[）)】\]]"
    r"|[【\[（(]?(?:点击|查看)(?:此处|这里)?(?:阅读|查看)?(?:全文|更多|原文)(?:内容)?(?:>+|»|\.{3}|…+)?[】\]）)]?"
    r"|(?<=[。！？])[ \t]*责任编辑[:：][^\n。]{1,20})[ \t]*$"
)


def kept_of(line):
    """What stays of a line; None if nothing of it does."""
    if not HINT.search(line):
        return line
    if len(line) <= LONGEST_BAR and BAR.fullmatch(line):
        return None
    tail = TAIL.search(line, max(0, len(line) - LONGEST_TAIL))
    return line[: tail.start()] if tail else line


def strip_boilerplate(text):
    """str → (str, None), a rule: without lines, and ends of lines, that belong to the page and not to the text."""
    if not HINT.search(text):
        return text, None
    lines = text.split("\n")
    kept = [kept_of(line) for line in lines]
    if kept == lines:
        return text, None
    left = "\n".join(line for line in kept if line is not None)
    return MANY_BREAKS.sub("\n\n", left).strip("\n"), None
