//! Which images to remove: those that no container stands on, the longest unused first. Pure.

use std::collections::HashMap;

use coracle_cri::v1::Image;
use jiff::Timestamp;

use crate::pod::after;

/// When images that nobody uses go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageGc {
    /// From this use of the disk on, per cent, images go …
    pub high: u64,
    /// … until it is down to this.
    pub low: u64,
    /// With so many bytes left nothing has to go, however large the disk.
    pub enough: u64,
    /// An image stays at least so many seconds after it was last used.
    pub min_age: i64,
}

impl ImageGc {
    /// Upstream's, but that it would empty large disks that have room enough.
    pub const UPSTREAM: Self = Self { high: 85, low: 80, enough: 10 << 30, min_age: 120 };
}

/// Whether a container with this image reference and name stands on the image.
pub fn stands_on(reference: &str, name: &str, image: &Image) -> bool {
    let known = |text: &str| {
        !text.is_empty()
            && (image.id == text
                || image.repo_digests.iter().any(|d| d == text)
                || image.repo_tags.iter().any(|t| t == text))
    };
    known(reference) || known(name)
}

/// The images to remove, by id, in order. `disk`: capacity and free bytes.
pub fn choose(
    images: &[Image],
    used: &HashMap<String, Timestamp>,
    disk: (u64, u64),
    pressure: bool,
    now: Timestamp,
    limits: ImageGc,
) -> Vec<String> {
    let (capacity, free) = disk;
    let busy = capacity.saturating_sub(free);
    let percent = (busy * 100).checked_div(capacity).unwrap_or(0);
    if !pressure && (percent < limits.high || free > limits.enough) {
        return Vec::new();
    }
    let goal = if pressure { u64::MAX } else { busy.saturating_sub(capacity / 100 * limits.low) };
    let mut idle: Vec<(&Image, Timestamp)> = images
        .iter()
        .filter(|i| !i.pinned)
        .filter_map(|i| Some((i, *used.get(&i.id)?)))
        .filter(|(_, last)| after(*last, limits.min_age) <= now)
        .collect();
    idle.sort_by_key(|(_, last)| *last);
    let mut freed = 0;
    let mut chosen = Vec::new();
    for (image, _) in idle {
        if freed >= goal {
            break;
        }
        freed += image.size;
        chosen.push(image.id.clone());
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_go_until_the_disk_is_emptier() {
        let image = |id: &str, pinned: bool| Image { id: id.into(), size: 3, pinned, ..Image::default() };
        let images = [image("new", false), image("old", false), image("older", false), image("own", true)];
        let t = |s: i64| Timestamp::from_second(s).expect("time");
        let used = [("new", 990), ("old", 20), ("older", 10), ("own", 0)];
        let used: HashMap<String, Timestamp> = used.map(|(id, s)| (id.to_owned(), t(s))).into();
        let limits = ImageGc::UPSTREAM;
        let choose =
            |free: u64, pressure: bool| choose(&images, &used, (100, free), pressure, t(1000), limits);
        assert!(choose(20, false).is_empty());
        assert_eq!(choose(15, false), ["older", "old"]);
        assert_eq!(choose(18, true), ["older", "old"]);
        assert!(stands_on(
            "x@sha256:1",
            "",
            &Image { repo_digests: vec!["x@sha256:1".into()], ..Image::default() }
        ));
    }
}
