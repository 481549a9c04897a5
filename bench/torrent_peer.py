"""One libtorrent peer, for bench/flash_crowd.py. Runs under Debian's Python, which has python3-libtorrent.

    torrent_peer.py seed DIRECTORY ADDRESS       shares DIRECTORY/image; writes DIRECTORY/image.torrent
    torrent_peer.py leech DIRECTORY ADDRESS TORRENT PEER...

Prints `ready`; waits for a line on stdin; prints `done SECONDS` (leech) and what it sent and received; ends with stdin.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import libtorrent

PORT = 6881


def open_session(address: str) -> libtorrent.session:
    return libtorrent.session(
        {
            "listen_interfaces": f"{address}:{PORT}",
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            # On a link of one's own uTP only gives way to itself: TCP is the faster one, and what we use.
            "enable_outgoing_utp": False,
            "enable_incoming_utp": False,
            "in_enc_policy": int(libtorrent.enc_policy.disabled),
            "out_enc_policy": int(libtorrent.enc_policy.disabled),
            "alert_mask": 0,
        }
    )


def make_torrent(directory: Path) -> libtorrent.torrent_info:
    files = libtorrent.file_storage()
    libtorrent.add_files(files, str(directory / "image"))
    torrent = libtorrent.create_torrent(files)
    libtorrent.set_piece_hashes(torrent, str(directory))
    encoded = libtorrent.bencode(torrent.generate())
    (directory / "image.torrent").write_bytes(encoded)
    return libtorrent.torrent_info(libtorrent.bdecode(encoded))


def add(session: libtorrent.session, torrent: libtorrent.torrent_info, directory: Path, *, seed: bool):
    flags = libtorrent.torrent_flags.seed_mode if seed else libtorrent.torrent_flags.update_subscribe
    return session.add_torrent({"ti": torrent, "save_path": str(directory), "flags": flags})


def say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    role, directory, address = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    session = open_session(address)
    if role == "seed":
        handle = add(session, make_torrent(directory), directory, seed=True)
        say(ready=True)
        sys.stdin.readline()
    else:
        torrent = libtorrent.torrent_info(sys.argv[4])
        say(ready=True)
        sys.stdin.readline()
        began = time.monotonic()
        handle = add(session, torrent, directory, seed=False)
        for peer in sys.argv[5:]:
            handle.connect_peer((peer, PORT))
        while not handle.status().is_seeding:
            time.sleep(0.01)
        say(seconds=time.monotonic() - began)
        sys.stdin.readline()
    status = handle.status()
    say(sent=status.total_payload_upload, received=status.total_payload_download, wasted=status.total_redundant_bytes)


if __name__ == "__main__":
    main()
