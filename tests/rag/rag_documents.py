"""Documents of every kind, made here: small, and broken in the ways that documents are."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

MARKDOWN = """---
title: front matter
---
# Guide

Intro to the [guide](http://example.org/x_(y)), in two
lines. A second sentence.

## Install

- first run `make`
- then read
  what it says
- done

```python
# not a heading
def install():
    pass
```

| name | size |
| ---- | ---: |
| small | 135M |
| large | 7B |

Setext
------
Last words, e.g. these. 中文也可以。
"""

REST = """=====
Title
=====

Intro with :func:`os.walk` and ``literal``.

First
-----

.. function:: copytree(src, dst, symlinks=False)

   Copy a tree of :class:`Path` objects::

      copytree("a", "b")

   .. versionadded:: 3.8
      The *dirs* parameter.

.. a comment
   of two lines

- one item
- another

=====  =====
A      B
=====  =====
1      2
=====  =====

.. note:: Careful here.
"""

HTML = """<!doctype html><html><head><title>A page</title><style>p{}</style></head>
<body><nav>menu menu</nav>
<main><h1>Top</h1>
<p>First &amp; foremost,
a paragraph.</p>
<h2>Lists</h2>
<ul><li>one <b>bold</b></li>
<li>two</li></ul>
<table><tr><th>k</th><th>v</th></tr>
<tr><td>a</td><td>1</td></tr></table>
<pre>x = 1
y = 2</pre>
<script>alert("no")</script></main>
<footer>made by</footer></body></html>
"""

PYTHON = '''"""About the module.

More about it."""
import os


class Thing:
    """A thing."""

    size = 3

    @property
    def area(self) -> int:
        """Its area, in m²."""
        return self.size**2

    def _hidden(self):
        """Not public."""


def make(
    name: str,
    mode=0o777,  # octal
) -> Thing:
    """Makes one."""
    def inner():
        """Inner."""
    return Thing()


def bare(): return 1
'''

NOVEL = """红楼梦

第一回 甄士隐梦幻识通灵 贾雨村风尘怀闺秀

　　此开卷第一回也。作者自云：因曾历过一番梦幻之后，故将真事隐去。
　　列位看官：你道此书从何而来？

第二回　贾夫人仙逝扬州城

　　却说封肃因听见公差传唤，忙出来陪笑启问。
"""


def pdf(*pages: str) -> bytes:
    """The smallest PDF with these pages of text."""
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b"", b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    kids = []
    for text in pages:
        lines = b"".join(b"(%s) Tj T* " % line.encode("latin-1") for line in text.split("\n"))
        stream = b"BT /F1 12 Tf 14 TL 72 720 Td " + lines + b"ET"
        objects.append(b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream))
        objects.append(b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Resources<</Font<</F1 3 0 R>>>>"
                       b"/Contents %d 0 R>>" % len(objects))  # fmt: skip
        kids.append(b"%d 0 R" % len(objects))
    objects[1] = b"<</Type/Pages/Count %d/Kids[%s]>>" % (len(kids), b" ".join(kids))
    out, places = io.BytesIO(), []
    out.write(b"%PDF-1.4\n")
    for number, body in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.writelines(b"%010d 00000 n \n" % place for place in places)
    out.write(b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, start))
    return out.getvalue()


def locked_pdf(*pages: str) -> bytes:
    """The same under a password (RC4, which pypdf does by itself)."""
    import pypdf

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf(*pages)))
    writer.encrypt("secret", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


_W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
STYLES = f'<w:styles {_W}><w:style w:styleId="Ttl1"><w:name w:val="heading 1"/></w:style></w:styles>'


def paragraph(text: str, style: str = "") -> str:
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"


def docx(body: str, *, prolog: str = "", pad: int = 0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/styles.xml", STYLES)
        archive.writestr(
            "word/document.xml", f"{prolog}<w:document {_W}><w:body>{body}</w:body></w:document>" + " " * pad
        )
    return out.getvalue()


def write_folder(folder: Path) -> Path:
    """A folder of one document of each kind, and files that are none."""
    (folder / "sub").mkdir(parents=True)
    files: dict[str, str | bytes] = {
        "guide.md": MARKDOWN,
        "library.rst": REST,
        "page.html": HTML,
        "sub/thing.py": PYTHON,
        "sub/novel.txt": NOVEL,
        "table.csv": "name,size\nsmall,135M\nlarge,7B\n",
        "old.txt": "这是用国标编码写成的文件，里面有很多汉字。".encode("gb18030"),
        "paper.pdf": pdf("Abstract\nWe study foxes.", "They are quick."),
        "report.docx": docx(paragraph("Results", "Ttl1") + paragraph("All went well.")),
        "locked.pdf": locked_pdf("secret"),
        "broken.pdf": pdf("x")[:200],
        "broken.docx": b"PK\x03\x04 nothing",
        "picture.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "empty.txt": b"",
        ".hidden.txt": "no",
        "spaces.txt": "  \n\n \t\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "loop").symlink_to(folder)
    return folder
