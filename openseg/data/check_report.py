# SPDX-License-Identifier: MIT
"""What a `SplitCheck` found, as text for people and as plain values for programs."""

import json
from typing import Any

from openseg.data.check import (
    SplitCheck,
    looks_like_train_ids,
    notes,
    problems,
    suggested_id_map,
)

_MOST_SHOWN = 10  # problems in the text; the JSON has all of them


def to_dict(check: SplitCheck, training: bool) -> dict[str, Any]:
    """All of it, of plain types."""
    info = check.dataset.info
    suggestion = suggested_id_map(check)
    rows = zip(info.classes, check.pixels.tolist(), check.images.tolist(), strict=True)
    return {
        "split": check.split,
        "samples": len(check.dataset),
        "sizes": [{"width": w, "height": h, "images": n} for (w, h), n in check.sizes.items()],
        "classes": [{"name": name, "pixels": p, "images": i} for name, p, i in rows],
        "ignored_pixels": check.ignored,
        "values": {str(value): count for value, count in sorted(check.values.items())},
        "problems": problems(check, training),
        "notes": notes(check, training),
        "suggested_id_map": None if suggestion is None else suggestion[0],
    }


def to_text(check: SplitCheck, training: bool) -> str:
    found = problems(check, training)
    lines = [f"{check.split}: {len(check.dataset)} samples{_sizes(check)}"]
    if check.values:
        lines += _table(check)
    lines += [f"  problem: {text}" for text in found[:_MOST_SHOWN]]
    if len(found) > _MOST_SHOWN:
        lines.append(f"  problem: and {len(found) - _MOST_SHOWN} more: --json has all of them")
    lines += [f"  note: {text}" for text in notes(check, training)]
    suggestion = suggested_id_map(check)
    if suggestion is not None:
        id_map, reason = suggestion
        lines.append(f"  try: 'data.id_map={json.dumps(id_map).replace(chr(34), '')}' ({reason})")
    if looks_like_train_ids(check):
        lines.append(
            f"  try: the published label files: these look like train ids, not like the values of "
            f"{check.dataset.info.name}; or data.name=folder"
        )
    return "\n".join(lines)


def _sizes(check: SplitCheck) -> str:
    if not check.sizes:
        return ""
    (width, height), most = check.sizes.most_common(1)[0]
    if len(check.sizes) == 1:
        return f", {width}×{height}"
    widths, heights = zip(*check.sizes, strict=True)
    return (
        f", {min(widths)} to {max(widths)} wide and {min(heights)} to {max(heights)} high; "
        f"{len(check.sizes)} sizes, most often {width}×{height} ({most})"
    )


def _table(check: SplitCheck) -> list[str]:
    names = [*check.dataset.info.classes, "(ignored)"]
    pixels = [*check.pixels.tolist(), check.ignored]
    images = [*map(str, check.images.tolist()), ""]
    width = max(map(len, names))
    total = max(sum(pixels), 1)
    lines = [f"  {'':3} {'class':<{width}} {'pixels':>15} {'share':>8} {'images':>7}"]
    for number, (name, count, seen) in enumerate(zip(names, pixels, images, strict=True)):
        index = number if number < len(check.pixels) else ""
        share = f"{100 * count / total:.2f} %"
        lines.append(f"  {index:>3} {name:<{width}} {count:>15,} {share:>8} {seen:>7}")
    return lines
