//! Looks into a container's root file system from outside, never following a link out of it: users and
//! groups, working directory.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, open, openat2};

/// Who a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// A root file system.
pub(crate) struct RootFs(OwnedFd);

impl RootFs {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
    }
    fn read(&self, path: &str) -> String {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let Ok(fd) = openat2(&self.0, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) else {
            return String::new();
        };
        let mut text = Vec::new();
        // A hostile image may put anything there.
        let _ = File::from(fd).take(4 << 20).read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
    /// As [`Self::make_dir`], by a user of the host who is root of another user namespace.
    pub fn make_dir_as(&self, path: &Path, user: u32) -> io::Result<()> {
        let (root, path) = (Self(self.0.try_clone()?), path.to_owned());
        crate::namespaces::in_own_thread(move || {
            // Of the thread alone.
            nix::unistd::setfsgid(user.into());
            nix::unistd::setfsuid(user.into());
            root.make_dir(&path)
        })
    }
    /// Makes a directory and its parents inside the root, as the working directory of a process.
    pub fn make_dir(&self, path: &Path) -> io::Result<()> {
        let mut done = std::path::PathBuf::from("/");
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let next = done.join(name);
            if openat2(&self.0, &next, flags, Mode::empty(), ResolveFlags::IN_ROOT).is_err() {
                let parent = openat2(&self.0, &done, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
                mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
            }
            done = next;
        }
        Ok(())
    }
    /// Resolves who to run as. `user` is `name`, `uid`, `name:group` or `uid:gid` in any mixture, as in an
    /// image's configuration; `group` overrides its group. With `strict` the groups are only `extra`, not those
    /// that the image's files give the user.
    ///
    /// # Errors
    /// A name that the image's files do not have; the text is as Docker's.
    pub fn identity(
        &self,
        user: &str,
        group: Option<u32>,
        extra: &[u32],
        strict: bool,
    ) -> Result<Identity, String> {
        let (passwd, groups) = (self.read("etc/passwd"), self.read("etc/group"));
        resolve(&passwd, &groups, user, group, extra, strict)
    }
}

fn resolve(
    passwd: &str,
    groups: &str,
    user: &str,
    group: Option<u32>,
    extra: &[u32],
    strict: bool,
) -> Result<Identity, String> {
    let (name, group_name) = user.split_once(':').map_or((user, None), |(u, g)| (u, Some(g)));
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let entry = passwd
        .lines()
        .map(|l| l.split(':').collect::<Vec<_>>())
        .find(|f| f.len() >= 4 && (f[0] == name || number.is_some_and(|n| f[2].parse() == Ok(n))));
    let uid = match (&entry, number) {
        (Some(fields), None) => {
            fields[2].parse().map_err(|_| format!("bad uid of user {name} in /etc/passwd"))?
        }
        (_, Some(uid)) => uid,
        (None, None) => {
            return Err(format!("unable to find user {name}: no matching entries in passwd file"));
        }
    };
    let primary = entry.as_ref().and_then(|f| f[3].parse().ok());
    let gid = match (group, group_name) {
        (Some(gid), _) => gid,
        (None, Some(g)) if !g.is_empty() => match g.parse() {
            Ok(gid) => gid,
            Err(_) => group_id(groups, g)
                .ok_or_else(|| format!("unable to find group {g}: no matching entries in group file"))?,
        },
        _ => primary.unwrap_or(0),
    };
    let mut all = vec![gid];
    all.extend(extra);
    if let Some(fields) = entry.as_ref().filter(|_| !strict) {
        for line in groups.lines() {
            let f: Vec<&str> = line.split(':').collect();
            if f.len() >= 4 && f[3].split(',').any(|m| m.trim() == fields[0]) {
                all.extend(f[2].parse::<u32>());
            }
        }
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|g| seen.insert(*g));
    Ok(Identity { uid, gid, groups: all })
}

fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.len() >= 3 && f[0] == name)?[2]
        .parse()
        .ok()
}

/// Where `inner` of the tree at `root` is, links followed within the tree.
///
/// # Errors
/// It is not there.
pub(crate) fn inside(root: &Path, inner: &str) -> io::Result<std::path::PathBuf> {
    if inner.is_empty() {
        return Ok(root.to_owned());
    }
    let dir = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let found = openat2(&dir, inner, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)?;
    std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found)))
}

/// Whether a path names a device; gives its kind letter (`c` or `b`), numbers and mode.
pub(crate) fn device(path: &Path) -> io::Result<Option<(char, u32, u32, u32)>> {
    use rustix::fs::{AtFlags, FileType, major, minor, statat};
    let stat = statat(CWD, path, AtFlags::empty())?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        _ => return Ok(None),
    };
    Ok(Some((kind, major(stat.st_rdev), minor(stat.st_rdev), stat.st_mode & 0o777)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:33:w:/:/bin/false\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nlog:x:44:web,other\n";

    #[track_caller]
    fn check(user: &str, uid: u32, gid: u32, groups: &[u32]) {
        let want = Identity { uid, gid, groups: groups.to_vec() };
        assert_eq!(resolve(PASSWD, GROUP, user, None, &[], false).unwrap(), want);
    }

    #[test]
    fn user_is_found_by_name_or_number_with_its_groups() {
        check("", 0, 0, &[0]);
        check("web", 101, 33, &[33, 44]);
        check("101", 101, 33, &[33, 44]);
        check("1234", 1234, 0, &[0]);
        check("web:log", 101, 44, &[44]);
        check("7:9", 7, 9, &[9]);
    }

    #[test]
    fn strict_groups_leave_out_those_of_the_image() {
        let got = resolve(PASSWD, GROUP, "web", None, &[7], true).unwrap();
        assert_eq!(got.groups, [33, 7]);
    }

    #[test]
    fn unknown_names_are_refused() {
        let message = resolve(PASSWD, GROUP, "ghost", None, &[], false).unwrap_err();
        assert_eq!(message, "unable to find user ghost: no matching entries in passwd file");
        assert!(resolve(PASSWD, GROUP, "web:none", None, &[], false).is_err());
    }

    #[test]
    fn links_do_not_lead_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("etc")).unwrap();
        let root = RootFs::open(dir.path()).unwrap();
        assert_eq!(root.read("etc/passwd"), "");
        std::os::unix::fs::symlink("/", dir.path().join("up")).unwrap();
        root.make_dir(Path::new("/up/made/here")).unwrap();
        assert!(dir.path().join("made/here").is_dir());
    }
}
