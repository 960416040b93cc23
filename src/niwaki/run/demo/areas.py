"""Which area of the standard library a module belongs to, after the chapters of the Python library reference.

Source: https://docs.python.org/3/library/ (small chapters are joined; modules that are written in C have no docstrings
to read, those of packaging were removed, and the character tables of `encodings` are no prose). A name that an
installation does not have is skipped; names with an underscore hold the text of the public module beside them.
"""

from __future__ import annotations

_TABLE = {
    "text": "_markupbase codecs difflib gettext html locale re rlcompleter shlex sre_compile sre_constants sre_parse "
    "string stringprep textwrap xml",
    "data types": "_collections_abc _py_abc _pydatetime _strptime _weakrefset array bisect calendar collections copy "
    "datetime enum functools graphlib heapq itertools operator pprint reprlib types weakref zoneinfo",
    "numbers": "_pydecimal _pylong cmath decimal fractions math numbers random statistics",
    "files": "_pyio configparser copyreg csv dbm filecmp fileinput fnmatch genericpath glob io linecache netrc ntpath "
    "os pathlib pickle pickletools plistlib posixpath shelve shutil sqlite3 stat tempfile tomllib",
    "compression": "_compression bz2 compression gzip lzma tarfile zipfile zlib",
    "concurrency": "_threading_local asyncio concurrent contextvars multiprocessing queue sched subprocess threading",
    "internet": "cgi ftplib http imaplib ipaddress nntplib poplib selectors smtplib socket socketserver ssl telnetlib "
    "urllib webbrowser wsgiref xmlrpc",
    "mail": "base64 email mailbox mailcap mimetypes quopri uu",
    "development": "bdb cProfile doctest pdb profile pstats pydoc timeit trace tracemalloc unittest",
    "language": "abc annotationlib ast code codeop compileall contextlib dataclasses dis importlib inspect "
    "modulefinder pkgutil py_compile pyclbr runpy site symtable tabnanny token tokenize traceback typing warnings "
    "zipimport",
    "system": "argparse cmd ctypes curses getopt getpass logging optparse platform pty sysconfig tty",
    "graphics": "colorsys tkinter turtle",
}

AREAS: dict[str, tuple[str, ...]] = {area: tuple(modules.split()) for area, modules in _TABLE.items()}
