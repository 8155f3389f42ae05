//! Unpacks a layer into a directory for overlayfs. Everything is done relative to directories that the kernel
//! resolves inside the layer (`openat2` with `RESOLVE_IN_ROOT`), so no name or link leads out of it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, open, openat, openat2,
    symlinkat, unlinkat, utimensat,
};
use tar::{Archive, EntryType, Header};

use super::digest::{Algorithm, Digest, Hasher};

/// Most bytes read from a hostile stream beyond what its entries say: the end of a tar is padded.
const BUFFER: usize = 256 << 10;

/// Wraps a compressed or plain stream in the right decoder, told by its first bytes.
pub(crate) fn decompress<'a>(input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut input = BufReader::with_capacity(BUFFER, input);
    let start = io::BufRead::fill_buf(&mut input)?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        _ => Box::new(input),
    })
}

/// Passes a stream through and hashes it.
pub(crate) struct Hashing<R> {
    inner: R,
    hash: Hasher,
    pub count: u64,
}

impl<R: Read> Hashing<R> {
    pub fn new(inner: R, algorithm: Algorithm) -> Self {
        Self { inner, hash: algorithm.hasher(), count: 0 }
    }
    /// Reads to the end; the digest of all that passed.
    pub fn finish(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(self.hash.finish())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

/// Unpacks a tar stream (compressed or not) into `dest`; the digest of the uncompressed stream.
///
/// # Errors
/// The stream is damaged, or the disk is full. `dest` is then incomplete.
pub(crate) fn unpack(input: impl Read, dest: &Path, algorithm: Algorithm) -> io::Result<Digest> {
    let mut stream = Hashing::new(decompress(input)?, algorithm);
    {
        let mut archive = Archive::new(BufReader::with_capacity(BUFFER, &mut stream));
        let mut target = Target::open(dest)?;
        for entry in archive.entries()? {
            let mut entry = entry.map_err(|e| not_tar(&e))?;
            let name = entry.path()?.into_owned();
            target
                .extract(&mut entry, &name)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", name.display())))?;
        }
        target.finish()?;
    }
    stream.finish()
}

/// What the tar reader says about something that is no tar, without the content it quotes.
pub(crate) fn not_tar(why: &io::Error) -> io::Error {
    if why.kind() == io::ErrorKind::StorageFull {
        return io::Error::new(why.kind(), why.to_string());
    }
    let text = why.to_string();
    if why.kind() == io::ErrorKind::UnexpectedEof || text.starts_with("failed to read entire block") {
        return invalid("the archive is cut off");
    }
    let first = text.lines().next().unwrap_or_default();
    let quoted = first.find(" when getting").or_else(|| first.find(':')).unwrap_or(first.len());
    invalid(&format!("not a tar archive, or damaged ({})", &first[..quoted]))
}

struct Target {
    root: OwnedFd,
    /// The directory of the last entry: neighbours follow each other.
    last: Option<(PathBuf, OwnedFd)>,
    /// Times of directories, set when nothing is written into them any more.
    times: BTreeMap<PathBuf, i64>,
}

impl Target {
    fn open(dest: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: open(dest, flags, Mode::empty())?, last: None, times: BTreeMap::new() })
    }

    /// A directory of the layer, made if absent.
    fn directory(&mut self, path: &Path) -> io::Result<OwnedFd> {
        if let Some((last, fd)) = &self.last
            && last == path
        {
            return fd.try_clone();
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let name = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let fd = match openat2(&self.root, name, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => {
                let parent = self.directory(path.parent().unwrap_or(Path::new("")))?;
                let own = path.file_name().unwrap_or_default();
                mkdirat(&parent, own, Mode::from_raw_mode(0o755))?;
                openat2(&self.root, name, flags, Mode::empty(), ResolveFlags::IN_ROOT)?
            }
            Err(e) => return Err(e.into()),
        };
        self.last = Some((path.to_owned(), fd.try_clone()?));
        Ok(fd)
    }

    fn extract<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, name: &Path) -> io::Result<()> {
        let path = inside(name)?;
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let Some(own) = path.file_name() else {
            // The root itself: its mode and owner.
            let root = openat(&self.root, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            return attributes(&root, entry);
        };
        let parent_path = path.parent().unwrap_or(Path::new("")).to_owned();
        let parent = self.directory(&parent_path)?;
        if let Some(hidden) = own.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(&parent, hidden);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if kind == EntryType::Directory {
            if let Err(error) = mkdirat(&parent, own, Mode::from_raw_mode(0o755)) {
                if error != rustix::io::Errno::EXIST {
                    return Err(error.into());
                }
                if openat(&parent, own, flags, Mode::empty()).is_err() {
                    self.clear(&parent, own)?;
                    mkdirat(&parent, own, Mode::from_raw_mode(0o755))?;
                }
            }
            let dir = openat(&parent, own, flags, Mode::empty())?;
            self.times.insert(path.clone(), mtime(entry.header()));
            return attributes(&dir, entry);
        }
        self.clear(&parent, own)?;
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = File::from(openat(&parent, own, flags, Mode::from_raw_mode(0o600))?);
                io::copy(entry, &mut file)?;
                attributes(&file, entry)?;
                set_times(&file, mtime(entry.header()))
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.ok_or_else(|| invalid("link without target"))?.into_owned();
                symlinkat(&target, &parent, own)?;
                owner_at(&parent, own, entry.header())?;
                let time = times(mtime(entry.header()));
                Ok(utimensat(&parent, own, &time, AtFlags::SYMLINK_NOFOLLOW)?)
            }
            EntryType::Link => {
                let target = entry.link_name()?.ok_or_else(|| invalid("link without target"))?.into_owned();
                let target = inside(&target)?;
                let from = self.directory(target.parent().unwrap_or(Path::new("")))?;
                let name = target.file_name().ok_or_else(|| invalid("link to the root"))?;
                Ok(linkat(&from, name, &parent, own, AtFlags::empty())?)
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                special(&parent, own, entry.header(), kind)
            }
            other => Err(invalid(&format!("unknown entry type {:?}", other.as_byte()))),
        }
    }

    /// `.wh.NAME` hides a lower layer's NAME; `.wh..wh..opq` hides all that lower layers have in the
    /// directory.
    fn whiteout(&mut self, parent: &OwnedFd, hidden: &[u8]) -> io::Result<()> {
        if hidden == b".wh..opq" {
            let dir = openat(parent, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            return Ok(fsetxattr(&dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())?);
        }
        if hidden.is_empty() || hidden.starts_with(b".wh.") || hidden == b"." || hidden == b".." {
            return Ok(());
        }
        let name = OsStr::from_bytes(hidden);
        self.clear(parent, name)?;
        Ok(mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))?)
    }

    /// A later entry replaces an earlier one of the same name.
    fn clear(&mut self, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(rustix::io::Errno::ISDIR) => {
                self.last = None;
                let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(parent));
                std::fs::remove_dir_all(Path::new(&path).join(name))
            }
            Err(e) => Err(e.into()),
        }
    }

    fn finish(self) -> io::Result<()> {
        for (path, seconds) in self.times.iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            if let Ok(dir) = openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
                set_times(&dir, *seconds)?;
            }
        }
        Ok(())
    }
}

/// The path below the root; absolute names lose their slash, `..` is refused.
fn inside(name: &Path) -> io::Result<PathBuf> {
    let mut path = PathBuf::new();
    for part in name.components() {
        match part {
            Component::Normal(p) => path.push(p),
            Component::CurDir | Component::RootDir => {}
            _ => return Err(invalid("the name leads out of the layer")),
        }
    }
    Ok(path)
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

fn mtime(header: &Header) -> i64 {
    header.mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0)
}

fn ids(header: &Header) -> io::Result<(Uid, Gid)> {
    let id = |v: u64| u32::try_from(v).map_err(|_| invalid("owner out of range"));
    let old = header.as_old();
    let (uid, gid) = (or_blank(header.uid(), &old.uid)?, or_blank(header.gid(), &old.gid)?);
    Ok((Uid::from_raw(id(uid)?), Gid::from_raw(id(gid)?)))
}

/// A field that was left blank means 0, as other readers take it.
fn or_blank(value: io::Result<u64>, field: &[u8]) -> io::Result<u64> {
    match value {
        Err(_) if field.iter().all(|b| matches!(b, 0 | b' ')) => Ok(0),
        other => other,
    }
}

fn owner_at(parent: &OwnedFd, name: &OsStr, header: &Header) -> io::Result<()> {
    let (uid, gid) = ids(header)?;
    Ok(chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Owner, mode and extended attributes; in this order, since a change of owner clears set-uid bits and file
/// capabilities.
fn attributes<R: Read>(file: &impl AsFd, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
    let (uid, gid) = ids(entry.header())?;
    fchown(file, Some(uid), Some(gid))?;
    fchmod(file, Mode::from_raw_mode(entry.header().mode()? & 0o7777))?;
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            let Some(name) = extension.key().ok().and_then(|k| k.strip_prefix("SCHILY.xattr.")) else {
                continue;
            };
            // overlayfs' own attributes would let an image redirect directories.
            if name.starts_with("trusted.overlay.") {
                continue;
            }
            match fsetxattr(file, name, extension.value_bytes(), XattrFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOTSUP) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

fn special(parent: &OwnedFd, name: &OsStr, header: &Header, kind: EntryType) -> io::Result<()> {
    let number = |v: io::Result<Option<u32>>| v.map(|v| v.unwrap_or(0));
    let device = makedev(number(header.device_major())?, number(header.device_minor())?);
    let file_type = match kind {
        EntryType::Fifo => FileType::Fifo,
        EntryType::Char => FileType::CharacterDevice,
        _ => FileType::BlockDevice,
    };
    let mode = Mode::from_raw_mode(header.mode()? & 0o7777);
    mknodat(parent, name, file_type, mode, device)?;
    owner_at(parent, name, header)?;
    Ok(chmodat(parent, name, mode, AtFlags::empty())?)
}

fn times(seconds: i64) -> Timestamps {
    let at = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: at, last_modification: at }
}

fn set_times(file: &impl AsFd, seconds: i64) -> io::Result<()> {
    Ok(futimens(file, &times(seconds))?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

    use super::*;

    fn entry(tar: &mut tar::Builder<Vec<u8>>, name: &str, kind: EntryType, link: &str, data: &[u8]) {
        let mut header = Header::new_gnu();
        // Set by hand: the builder refuses the hostile names that matter here.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_uid(12);
        header.set_gid(34);
        header.set_mtime(1000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        tar.append(&header, data).unwrap();
    }

    fn unpacked(entries: &[(&str, EntryType, &str)]) -> io::Result<tempfile::TempDir> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, link) in entries {
            entry(&mut tar, name, *kind, link, if *kind == EntryType::Regular { b"data" } else { b"" });
        }
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("fs"))?;
        unpack(&tar.into_inner()?[..], &dir.path().join("fs"), Algorithm::Sha256)?;
        Ok(dir)
    }

    #[test]
    fn owner_mode_time_and_hard_links_are_kept() {
        let dir = unpacked(&[("a/f", EntryType::Regular, ""), ("a/g", EntryType::Link, "a/f")]).unwrap();
        let meta = std::fs::metadata(dir.path().join("fs/a/f")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mtime(), meta.nlink()), (12, 34, 1000, 2));
        assert_eq!(meta.permissions().mode() & 0o7777, 0o4755);
    }

    #[test]
    fn whiteouts_become_devices_and_opaque_marks() {
        let dir =
            unpacked(&[("d/.wh.gone", EntryType::Regular, ""), ("o/.wh..wh..opq", EntryType::Regular, "")])
                .unwrap();
        let gone = std::fs::symlink_metadata(dir.path().join("fs/d/gone")).unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        let mut value = [0u8; 1];
        rustix::fs::getxattr(dir.path().join("fs/o"), "trusted.overlay.opaque", &mut value[..]).unwrap();
        assert_eq!(&value, b"y");
    }

    #[test]
    fn names_and_links_do_not_lead_out() {
        assert!(unpacked(&[("../evil", EntryType::Regular, "")]).is_err());
        let dir = unpacked(&[
            ("up", EntryType::Symlink, "../.."),
            ("up/evil", EntryType::Regular, ""),
            ("abs", EntryType::Symlink, "/"),
            ("abs/evil2", EntryType::Regular, ""),
        ])
        .unwrap();
        assert!(dir.path().join("fs/evil").is_file() && dir.path().join("fs/evil2").is_file());
        assert!(!dir.path().join("evil").exists());
        assert!(unpacked(&[("l", EntryType::Link, "../../etc/passwd")]).is_err());
    }

    #[test]
    fn later_entry_replaces_earlier_of_another_kind() {
        let dir = unpacked(&[
            ("x", EntryType::Directory, ""),
            ("x/y", EntryType::Regular, ""),
            ("x", EntryType::Symlink, "elsewhere"),
        ])
        .unwrap();
        assert!(std::fs::symlink_metadata(dir.path().join("fs/x")).unwrap().is_symlink());
    }
}
