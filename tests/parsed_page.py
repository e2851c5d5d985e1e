"""A page as a browser would read it."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """What a browser would make of the page: table cells, visible text, elements, and addresses to load."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.elements, self.addresses, self.text, self.inside = [], [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "srcset", "action", "data")]
        if tag not in ("meta", "img", "link", "br", "input", "wbr"):
            self.inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self.inside and self.inside[-1] in ("script", "style"):
            return
        self.text += data
        if {"td", "th"} & set(self.inside) and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data
