"""`ipfsreg gc`: look for what no repository refers to, and delete it."""

from __future__ import annotations

from typing import Any

from ipfsreg.cli.status import human_bytes, tell
from ipfsreg.config import Config

TIMEOUT_S = 3600.0
"""A look at a large store takes minutes, because it makes way for everything else."""


def collect(config: Config, *, dry_run: bool, grace_s: float | None) -> dict[str, Any]:
    """Let the running node look; return its report. Raises NotRunning, Refused."""
    fields = {"dry_run": "true" if dry_run else "false"}
    if grace_s is not None:
        fields["grace_s"] = str(grace_s)
    return tell(config, "/gc", fields, timeout_s=TIMEOUT_S)


def describe_report(report: dict[str, Any]) -> str:
    """*report* for a person: a line for each piece of garbage, then what it comes to."""
    lines = [_describe_item(item, report["dry_run"]) for item in report["items"]]
    if report["items_left_out"]:
        lines.append(f"and {report['items_left_out']} more")
    lines += [f"names of {kept['repository']} are left alone: {kept['why']}" for kept in report["kept_repositories"]]
    if report["skipped"]:
        return f"nothing is collected now: {report['skipped']}"
    if report["names_skipped"]:
        lines.append(f"names are left alone: {report['names_skipped']}")
    verb = "would delete" if report["dry_run"] else "deleted"
    lines.append(
        f"{verb} {report['deleted_blobs']} blobs, {human_bytes(report['deleted_bytes'])}, and "
        f"{report['deleted_names']} names; {report['waiting']} within their grace; {report['took_s']:.1f} s"
    )
    return "\n".join(lines)


def _describe_item(item: dict[str, Any], dry_run: bool) -> str:
    when = f"in {_duration(item['left_s'])}" if item["left_s"] else ("now" if dry_run else "gone")
    where = f" in {item['repository']}" if item["repository"] else ""
    return f"{item['what']:<8} {item['digest']}  {human_bytes(item['bytes']):>10}  {when:<9} {item['why']}{where}"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
