"""What differs, grouped: by the kind of difference, then with one example of each."""
import collections
import re


def cause(line):
    """A line of difference without what is particular to the case: names, numbers and quoted texts."""
    line = re.sub(r"\[\d+\]", "[]", line.strip())
    line = re.sub(r"k:\{[^}]*\}", "k:{}", line)
    line = re.sub(r'\\"[^"]*\\"', '""', line)
    return re.sub(r"\d+", "N", line)[:160]


def grouped(results):
    """Cases that fail, by the cause of their first difference: {cause: [(id, lines)]}, most first."""
    groups = collections.defaultdict(list)
    for result in results:
        if not result["pass"]:
            first = next((line for line in result["diff"] if line.startswith(" ")), "?")
            groups[cause(first)].append((result["id"], result["diff"]))
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def sets(results):
    """Cases and equal ones, by set."""
    all_of, equal = collections.Counter(), collections.Counter()
    for result in results:
        name = result["id"].split("/")[0]
        all_of[name] += 1
        equal[name] += result["pass"]
    return [(name, all_of[name], equal[name]) for name in sorted(all_of)]


def text(results, examples):
    lines = [f"{name:14} {equal:6} of {many:6} equal ({100 * equal / many:.1f} %)" for name, many,
        equal in sets(results)]
    for what, found in grouped(results).items():
        lines.append(f"\n{len(found):5}  {what}")
        for name, diff in found[:examples]:
            lines.append(f"       {name}")
            lines += [f"         {line[:600]}" for line in diff[:4]]
    return "\n".join(lines)
