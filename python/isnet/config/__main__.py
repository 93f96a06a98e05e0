"""``python -m isnet.config``: every option as a page of Markdown, docs/options.md."""

from isnet.config.files import to_markdown

if __name__ == "__main__":
    print(to_markdown(), end="")
