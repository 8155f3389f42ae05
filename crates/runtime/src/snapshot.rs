//! Writable file systems of containers: overlayfs over the image's layers.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount, move_mount,
};

/// The writable part of a container, below `root/containers/<id>`.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    dir: PathBuf,
    shifted: Option<Shifted>,
}

/// How a container with a user namespace sees files.
#[derive(Clone, Debug)]
pub(crate) struct Shifted {
    /// The directory that has all layers.
    pub root: PathBuf,
    /// Where shifted mounts are: its users can reach it, the data directory they may not.
    pub place: PathBuf,
    /// The user namespace.
    pub users: PathBuf,
    /// The host's id of its root.
    pub host_root: u32,
}

impl Shifted {
    /// Where it has a mount of a kind.
    fn at(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }
    /// Does `work` with the root's files shown shifted; it is given where they are.
    fn within<T>(&self, work: impl FnOnce(&dyn Fn(&Path) -> PathBuf) -> io::Result<T>) -> io::Result<T> {
        let store = self.at("store");
        crate::user_namespace::show(&self.root, &store, &self.users, false)?;
        let done = work(&|path| path.strip_prefix(&self.root).map_or(path.to_owned(), |p| store.join(p)));
        // The overlay has its own view of them.
        crate::files::unmount(&store);
        done
    }
}

impl Snapshot {
    pub fn new(root: &Path, container: &str) -> Self {
        Self { dir: root.join("containers").join(container), shifted: None }
    }
    /// With files as another user namespace sees them.
    pub fn shifted(self, shifted: Option<Shifted>) -> Self {
        Self { shifted, ..self }
    }
    /// Where the container's root file system is mounted.
    pub fn merged(&self) -> PathBuf {
        self.shifted.as_ref().map_or_else(|| self.dir.join("merged"), |s| s.at("merged"))
    }
    /// The files that the container made or changed.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }
    /// Makes the directories and mounts; `layers` lowest first.
    pub fn mount(&self, layers: &[PathBuf]) -> io::Result<()> {
        let (upper, work, merged) = (self.upper(), self.dir.join("work"), self.merged());
        for dir in [&upper, &work, &merged] {
            fs::create_dir_all(dir)?;
        }
        let empty = [self.dir.join("empty")];
        let layers = if layers.is_empty() {
            fs::create_dir_all(&empty[0])?;
            &empty[..]
        } else {
            layers
        };
        let mount = |at: &dyn Fn(&Path) -> PathBuf| {
            let layers: Vec<PathBuf> = layers.iter().map(|l| at(l)).collect();
            if mount_by_descriptor(&layers, &upper, &work, &merged).is_ok() {
                return Ok(());
            }
            mount_by_options(&layers, &upper, &work, &merged)
        };
        if let Some(shifted) = &self.shifted {
            // The writable part is the container's own: it has the host's ids on disk. Shown shifted, overlayfs could
            // not make its own directories in it.
            std::os::unix::fs::chown(&upper, Some(shifted.host_root), Some(shifted.host_root))?;
        }
        let mounted = match &self.shifted {
            Some(shifted) => shifted.within(mount),
            None => mount(&Path::to_owned),
        };
        mounted.map_err(|e| {
            io::Error::new(e.kind(), format!("cannot mount overlay at {}: {e}", merged.display()))
        })
    }
    /// Shows a volume's files to the container's users, if it has its own; where. `number` tells it from the others.
    pub fn volume(&self, number: usize, source: &Path) -> io::Result<Option<PathBuf>> {
        let Some(shifted) = &self.shifted else { return Ok(None) };
        let place = shifted.at(&format!("volume-{number}"));
        crate::user_namespace::show(source, &place, &shifted.users, true)?;
        Ok(Some(place))
    }
    /// Takes away the views of volumes: their container has ended.
    pub fn release_volumes(&self) {
        let Some(shifted) = &self.shifted else { return };
        for entry in fs::read_dir(&shifted.place).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b"volume-") {
                crate::files::unmount(&entry.path());
            }
        }
    }
    /// Mounts an image's files read-only, for a volume; where. `layers` lowest first.
    pub fn view(&self, number: usize, layers: &[PathBuf]) -> io::Result<PathBuf> {
        let dir = self.dir.join("views").join(number.to_string());
        let (lowest, highest, place) = (dir.join("lowest"), dir.join("highest"), dir.join("fs"));
        for dir in [&lowest, &highest, &place] {
            fs::create_dir_all(dir)?;
        }
        // An overlay without an upper part has two layers at least.
        let layers: Vec<PathBuf> = [&lowest].into_iter().chain(layers).chain([&highest]).cloned().collect();
        let place = self.shifted.as_ref().map_or(place, |s| s.at(&format!("image-{number}")));
        fs::create_dir_all(&place)?;
        let mount = |at: &dyn Fn(&Path) -> PathBuf| {
            read_only(&layers.iter().map(|l| at(l)).collect::<Vec<_>>(), &place)
        };
        let mounted = match &self.shifted {
            Some(shifted) => shifted.within(mount),
            None => mount(&Path::to_owned),
        };
        mounted.map_err(|e| {
            io::Error::new(e.kind(), format!("cannot mount image at {}: {e}", place.display()))
        })?;
        Ok(place)
    }
    /// Unmounts and deletes.
    pub fn remove(&self) -> io::Result<()> {
        if let Some(shifted) = &self.shifted {
            crate::files::remove_mount_points(&shifted.place)?;
        }
        crate::files::unmount(&self.dir.join("merged"));
        for view in fs::read_dir(self.dir.join("views")).into_iter().flatten().flatten() {
            crate::files::unmount(&view.path().join("fs"));
        }
        crate::files::remove_tree(&self.dir)
    }
}

/// The mount API of kernel 6.8 and later: one call per layer, no limit on their number or names.
fn mount_by_descriptor(layers: &[PathBuf], upper: &Path, work: &Path, merged: &Path) -> io::Result<()> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers.iter().rev() {
        fsconfig_set_string(&fs, "lowerdir+", layer)?;
    }
    fsconfig_set_string(&fs, "upperdir", upper)?;
    fsconfig_set_string(&fs, "workdir", work)?;
    fsconfig_create(&fs)?;
    let mounted = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(&mounted, "", rustix::fs::CWD, merged, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// An overlay that nobody can write to.
fn read_only(layers: &[PathBuf], place: &Path) -> io::Result<()> {
    let by_descriptor = || -> io::Result<()> {
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for layer in layers.iter().rev() {
            fsconfig_set_string(&fs, "lowerdir+", layer)?;
        }
        fsconfig_create(&fs)?;
        let mounted = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        move_mount(&mounted, "", rustix::fs::CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(())
    };
    if by_descriptor().is_ok() {
        return Ok(());
    }
    let lower: Vec<String> = layers.iter().rev().map(|l| escape(l)).collect();
    let options = CString::new(format!("lowerdir={}", lower.join(":")))?;
    Ok(mount("overlay", place, "overlay", MountFlags::RDONLY, Some(options.as_c_str()))?)
}

/// A path as overlayfs reads it in its options.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

fn mount_by_options(layers: &[PathBuf], upper: &Path, work: &Path, merged: &Path) -> io::Result<()> {
    let lower: Vec<String> = layers.iter().rev().map(|l| escape(l)).collect();
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), escape(upper), escape(work));
    mount("overlay", merged, "overlay", MountFlags::empty(), Some(CString::new(options)?.as_c_str()))?;
    Ok(())
}
