"""Certificates for tests of TLS, in files: an authority made anew, and what it issues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trustme
from gevent import ssl

import gnats


class Authority:
    """A certificate authority, and files of what it issued."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ca = trustme.CA()
        self.ca = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(self, *names: str, **options: Any) -> tuple[str, str]:
        """Files of a certificate and its key."""
        issued = self._ca.issue_cert(*names, **options)
        stem = names[0].replace("*", "_").replace(":", "_")
        cert, key = self.folder / f"{stem}.pem", self.folder / f"{stem}.key"
        issued.cert_chain_pems[0].write_to_path(cert)
        issued.private_key_pem.write_to_path(key)
        return str(cert), str(key)

    def server_context(self, *names: str, **options: Any) -> Any:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(*names, **options))
        return context

    def config(self, *names: str, extra: str = "") -> str:
        cert, key = self.issue(*names)
        return f'tls {{ cert_file: "{cert}", key_file: "{key}", timeout: 5 {extra} }}'

    @property
    def trusted(self) -> gnats.TLSOptions:
        return gnats.TLSOptions(ca=self.ca)
