//! A unified difference of two texts, as refusals of updates end with: unified, without names of files.

/// Lines of agreement around a change.
const CONTEXT: usize = 3;

/// One line of the difference: its mark, and the number of the line in the old and in the new text.
struct Line<'t> {
    mark: char,
    text: &'t str,
    old: usize,
    new: usize,
}

/// The hunks between two texts; empty when they are equal.
pub(crate) fn unified(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let lines = align(&old, &new);
    let changed: Vec<usize> =
        lines.iter().enumerate().filter(|(_, line)| line.mark != ' ').map(|(i, _)| i).collect();
    let Some(first) = changed.first() else { return String::new() };
    let mut out = String::new();
    let (mut start, mut last) = (*first, *first);
    for at in changed.into_iter().skip(1) {
        if at - last > 2 * CONTEXT {
            hunk(&lines, start, last, &mut out);
            start = at;
        }
        last = at;
    }
    hunk(&lines, start, last, &mut out);
    out
}

fn hunk(lines: &[Line<'_>], start: usize, last: usize, out: &mut String) {
    let shown = &lines[start.saturating_sub(CONTEXT)..(last + CONTEXT + 1).min(lines.len())];
    let Some(first) = shown.first() else { return };
    let range = |at: usize, mark: char| {
        let count = shown.iter().filter(|line| line.mark != mark).count();
        if count == 1 { format!("{}", at + 1) } else { format!("{},{count}", at + usize::from(count > 0)) }
    };
    out.push_str(&format!("@@ -{} +{} @@\n", range(first.old, '+'), range(first.new, '-')));
    for line in shown {
        out.push(line.mark);
        out.push_str(line.text);
        out.push('\n');
    }
}

/// Both texts line by line: what they share, what only the old and what only the new one has.
fn align<'t>(old: &[&'t str], new: &[&'t str]) -> Vec<Line<'t>> {
    // Length of the longest common subsequence of what follows each pair of positions.
    let width = new.len() + 1;
    let mut longest = vec![0_u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            longest[i * width + j] = if old[i] == new[j] {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j, mut out) = (0, 0, Vec::with_capacity(old.len().max(new.len())));
    while i < old.len() || j < new.len() {
        let both = i < old.len() && j < new.len();
        if both && old[i] == new[j] {
            out.push(Line { mark: ' ', text: old[i], old: i, new: j });
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (both && longest[(i + 1) * width + j] >= longest[i * width + j + 1]) {
            out.push(Line { mark: '-', text: old[i], old: i, new: j });
            i += 1;
        } else {
            out.push(Line { mark: '+', text: new[j], old: i, new: j });
            j += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::unified;

    #[test]
    fn changes_are_shown_with_three_lines_around_them() {
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n13\n14\n15";
        let new = "1\n2\n3\n4\nfive\n6\n7\n8\n9\n10\n11\n12\n13\n14\n15\n16";
        let expected = "@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n\
                        @@ -13,3 +13,4 @@\n 13\n 14\n 15\n+16\n";
        assert_eq!(unified(old, new), expected);
        assert_eq!(unified(old, old), "");
    }
}
