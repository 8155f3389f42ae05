//! Environment files (`fileKeyRef`): what an init container wrote into a volume, in upstream's strict form
//! `NAME='value'`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

/// Longest file that is read.
const LONGEST: u64 = 1 << 20;

/// The value of a key of a file in a volume; empty if the file has no such key.
///
/// # Errors
/// There is no such file, or it is not of the form.
pub fn read(volume: &Path, path: &str, key: &str) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("failed to open environment variable file {path:?}: {e}");
    let root = open(volume, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.map_err(|e| failed(e.into()))?;
    // Links must not lead out of the volume, and a pipe must not hold us up.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let found = openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
    let file = File::from(found.map_err(|e| failed(e.into()))?);
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(std::io::ErrorKind::InvalidInput.into()));
    }
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text).map_err(failed)?;
    parse(&String::from_utf8_lossy(&text), key)
}

/// Looks a key up; what follows it is not read.
fn parse(text: &str, key: &str) -> Result<String, String> {
    let wrong_at =
        |line: usize, why: &str| Err(format!("invalid environment variable format at line {line}: {why}"));
    let mut lines = text.lines().enumerate().map(|(number, line)| (number + 1, line));
    while let Some((number, line)) = lines.next() {
        let line = line.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { return wrong_at(number, "missing '='") };
        if name.trim_end_matches([' ', '\t']).is_empty() {
            return wrong_at(number, "empty variable name");
        }
        if name.ends_with([' ', '\t']) {
            return wrong_at(number, "whitespace before '=' is not allowed");
        }
        if value.starts_with([' ', '\t']) {
            // As a shell reads it: the variable is empty.
            if name == key {
                return Ok(String::new());
            }
            continue;
        }
        let Some(mut rest) = value.strip_prefix('\'') else {
            return wrong_at(number, "value must be enclosed in single quotes");
        };
        let (mut value, mut last) = (String::new(), number);
        let behind = loop {
            if let Some((end, behind)) = rest.split_once('\'') {
                value.push_str(end);
                break behind.trim_start_matches([' ', '\t']);
            }
            value.push_str(rest);
            value.push('\n');
            let Some((number_now, line)) = lines.next() else {
                return Err(format!(
                    "invalid environment variable format starting at line {number}: unclosed single quote"
                ));
            };
            (last, rest) = (number_now, line);
        };
        if !behind.is_empty() && !behind.starts_with('#') {
            return wrong_at(last, "unexpected content after closing quote");
        }
        if name == key {
            return Ok(value);
        }
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, key: &str, want: Result<&str, &str>) {
        let got = parse(text, key);
        let want = want.map(str::to_owned).map_err(|e| format!("invalid environment variable format {e}"));
        assert_eq!(got, want, "{text:?}");
    }

    #[test]
    fn values_are_what_stands_between_single_quotes() {
        check("   A='1'\n\t\tB='2'\n", "B", Ok("2"));
        check("# c\n\nA='x'\n  # c\nB='a#b' # c\n", "B", Ok("a#b"));
        check("A='  x '\n", "A", Ok("  x "));
        check("A='a=b'\n", "A", Ok("a=b"));
        check("A='$HOME ${X}'\n", "A", Ok("$HOME ${X}"));
        check("A='one\ntwo\n'\nB='3'", "A", Ok("one\ntwo\n"));
        check("A='one\ntwo\n'\nB='3'", "B", Ok("3"));
        check("A= '1'\nB='2'", "A", Ok(""));
        check("A='1'", "Z", Ok(""));
    }

    #[test]
    fn other_forms_are_refused_with_their_line() {
        check("A ='1'", "A", Err("at line 1: whitespace before '=' is not allowed"));
        check("='1'\nB='2'", "B", Err("at line 1: empty variable name"));
        check("A='1'\nword\n", "B", Err("at line 2: missing '='"));
        check("A='1'\nB=2\n", "B", Err("at line 2: value must be enclosed in single quotes"));
        check("A='1''2'", "A", Err("at line 1: unexpected content after closing quote"));
        check("A='1'\nB='2\n\n", "B", Err("starting at line 2: unclosed single quote"));
        check("A='1'\nB=2\n", "A", Ok("1"));
    }

    #[test]
    fn links_do_not_lead_out_of_the_volume() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("secret"), "A='1'").expect("a file");
        let volume = dir.path().join("v");
        std::fs::create_dir(&volume).expect("a directory");
        std::os::unix::fs::symlink("../secret", volume.join("link")).expect("a link");
        assert!(read(&volume, "link", "A").is_err());
        std::fs::write(volume.join("file"), "A='2'").expect("a file");
        assert_eq!(read(&volume, "file", "A"), Ok("2".to_owned()));
    }
}
