//! When a node counts as short of something: the thresholds that are configured, and what upstream calls them.
//! Source: <https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/>. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_meta::quantity::Quantity;

use crate::machine::Capacity;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Memory of the machine.
    Memory,
    /// What pods may still have of the memory that is theirs in all.
    PodsMemory,
    /// Bytes of the file system with volumes and logs.
    NodeDisk,
    /// Its inodes.
    NodeInodes,
    /// Bytes of the file system with images and writable layers.
    ImageDisk,
    /// Its inodes.
    ImageInodes,
    /// Bytes where writable layers are, if not beside the images: as the one or the other.
    ContainerDisk,
    /// Its inodes.
    ContainerInodes,
    /// Process ids.
    Pids,
}

/// Signal, upstream's name, the node condition it sets, and the resource that is then short.
const SIGNALS: [(Signal, &str, &str, &str); 9] = [
    (Signal::Memory, "memory.available", "MemoryPressure", "memory"),
    (Signal::PodsMemory, "allocatableMemory.available", "MemoryPressure", "memory"),
    (Signal::NodeDisk, "nodefs.available", "DiskPressure", "ephemeral-storage"),
    (Signal::NodeInodes, "nodefs.inodesFree", "DiskPressure", "inodes"),
    (Signal::ImageDisk, "imagefs.available", "DiskPressure", "ephemeral-storage"),
    (Signal::ImageInodes, "imagefs.inodesFree", "DiskPressure", "inodes"),
    (Signal::ContainerDisk, "containerfs.available", "DiskPressure", "ephemeral-storage"),
    (Signal::ContainerInodes, "containerfs.inodesFree", "DiskPressure", "inodes"),
    (Signal::Pids, "pid.available", "PIDPressure", "pids"),
];

impl Signal {
    fn parse(name: &str) -> Result<Self, String> {
        let row = SIGNALS.iter().find(|row| row.1 == name);
        row.map(|row| row.0).ok_or_else(|| format!("unsupported eviction signal {name}"))
    }
    fn row(self) -> (&'static str, &'static str, &'static str) {
        let row = SIGNALS.iter().find(|row| row.0 == self);
        row.map_or(("", "", ""), |row| (row.1, row.2, row.3))
    }
    /// Upstream's name.
    pub fn name(self) -> &'static str {
        self.row().0
    }
    /// Type of the node condition.
    pub fn condition(self) -> &'static str {
        self.row().1
    }
    /// Name of what is short.
    pub fn resource(self) -> &'static str {
        self.row().2
    }
    /// Whether it tells of a disk.
    pub fn is_disk(self) -> bool {
        self.condition() == "DiskPressure"
    }
    /// Whether an amount of it is in bytes.
    pub fn in_bytes(self) -> bool {
        !matches!(self.resource(), "inodes" | "pids")
    }
}

/// How much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// So much.
    Exact(Quantity),
    /// This share of the capacity, 1 being all.
    Share(f32),
    /// This share, but no more than so many bytes: of a large disk it would be more than anybody needs.
    ShareUpTo(f32, i64),
}

impl Amount {
    /// How much that is where there is so much in all.
    pub fn of(self, capacity: u64) -> Quantity {
        let part = |share: f32| (capacity as f64 * f64::from(share)) as i64;
        match self {
            Self::Exact(quantity) => quantity,
            Self::Share(share) => Quantity::from_bytes(part(share)),
            Self::ShareUpTo(share, most) => Quantity::from_bytes(part(share).min(most)),
        }
    }
}

/// When there is too little.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    /// Less than this is too little.
    pub least: Amount,
    /// How long it must have been so before a pod goes, which then has time to end; `None`: pods go at once.
    pub grace: Option<Duration>,
    /// Once pods had to go, so much more than the threshold must come free.
    pub reclaim: Option<Amount>,
}

/// Thresholds and what is done about them.
#[derive(Clone, Debug, PartialEq)]
pub struct EvictionConfig {
    /// Hard and soft ones.
    pub thresholds: Vec<Threshold>,
    /// How long a condition is shown after it was last seen.
    pub transition: Duration,
    /// Seconds that a pod may have to end when it goes after a time of grace.
    pub most_grace: i64,
    /// Whether the kernel is to tell when memory gets short, between two looks.
    pub kernel_tells: bool,
}

/// A part of the configuration: signal and amount or time, as text.
type Texts = BTreeMap<String, String>;

/// What the configuration says of eviction, field by field.
#[derive(Clone, Copy, Debug)]
pub struct EvictionTexts<'a> {
    /// `evictionHard`.
    pub hard: &'a Texts,
    /// `evictionSoft`.
    pub soft: &'a Texts,
    /// `evictionSoftGracePeriod`.
    pub grace: &'a Texts,
    /// `evictionMinimumReclaim`.
    pub reclaim: &'a Texts,
    /// `mergeDefaultEvictionSettings`: signals that are not named keep their defaults.
    pub merge: bool,
}

impl EvictionConfig {
    /// As without any configuration.
    pub fn standard() -> Self {
        let row = |signal: Signal, least: Amount| Threshold { signal, least, grace: None, reclaim: None };
        let disk = Amount::ShareUpTo(0.05, 4 << 30);
        let memory = Amount::Exact(Quantity::from_bytes(100 << 20));
        let thresholds = vec![
            row(Signal::Memory, memory),
            row(Signal::PodsMemory, memory),
            row(Signal::NodeDisk, disk),
            row(Signal::NodeInodes, Amount::Share(0.05)),
            row(Signal::ImageDisk, disk),
            row(Signal::ImageInodes, Amount::Share(0.05)),
        ];
        Self { thresholds, transition: Duration::from_mins(5), most_grace: 0, kernel_tells: false }
    }

    /// Replaces the thresholds by what is configured. Without `merge`, hard thresholds that are given replace all
    /// standard ones.
    ///
    /// # Errors
    /// A signal, an amount or a time that cannot be; a soft threshold without a time of grace.
    pub fn configure(&mut self, texts: EvictionTexts<'_>) -> Result<(), String> {
        if !texts.hard.is_empty() {
            let given = thresholds(texts.hard)?;
            let named = |signal: Signal| texts.hard.contains_key(signal.name());
            self.thresholds.retain(|t| texts.merge && t.signal != Signal::PodsMemory && !named(t.signal));
            self.thresholds.extend(given);
            self.watch_pods_memory();
        }
        let graces = texts.grace.iter().map(|(signal, text)| grace(signal, text));
        let graces: BTreeMap<Signal, Duration> = graces.collect::<Result<_, _>>()?;
        for mut threshold in thresholds(texts.soft)? {
            let signal = threshold.signal;
            let given = graces.get(&signal).copied();
            threshold.grace = Some(given.ok_or_else(|| {
                format!("grace period must be specified for the soft eviction threshold {}", signal.name())
            })?);
            self.thresholds.push(threshold);
        }
        for (signal, text) in texts.reclaim {
            let (signal, amount) = (Signal::parse(signal)?, reclaim(signal, text)?);
            self.thresholds.iter_mut().filter(|t| t.signal == signal).for_each(|t| t.reclaim = Some(amount));
        }
        Ok(())
    }

    /// What holds for the machine's memory holds for the part that is for pods.
    fn watch_pods_memory(&mut self) {
        let memory = self.thresholds.iter().find(|t| t.signal == Signal::Memory && t.grace.is_none());
        let own = self.thresholds.iter().any(|t| t.signal == Signal::PodsMemory);
        if let Some(memory) = memory.copied().filter(|_| !own) {
            self.thresholds.push(Threshold { signal: Signal::PodsMemory, ..memory });
        }
    }

    /// What hard thresholds keep free of memory and disk, and so from pods.
    pub fn kept_free(&self, capacity: Capacity) -> Capacity {
        let hard = |signal: Signal, all: i64| {
            let found = self.thresholds.iter().rfind(|t| t.signal == signal && t.grace.is_none());
            found.map_or(0, |t| t.least.of(all.max(0).unsigned_abs()).value())
        };
        Capacity {
            memory: hard(Signal::Memory, capacity.memory),
            disk: hard(Signal::NodeDisk, capacity.disk),
        }
    }
}

fn thresholds(texts: &Texts) -> Result<Vec<Threshold>, String> {
    let all = texts.iter().map(|(signal, text)| threshold(signal, text));
    all.filter_map(Result::transpose).collect()
}

/// `None` for 0 % and 100 %: upstream's way to switch a threshold off.
fn threshold(name: &str, text: &str) -> Result<Option<Threshold>, String> {
    let signal = Signal::parse(name)?;
    let least = if let Some(percent) = text.strip_suffix('%') {
        if matches!(percent, "0" | "100") {
            return Ok(None);
        }
        let share = share(percent)?;
        if share < 0.0 {
            return Err(format!("eviction percentage threshold {name} must be >= 0%: {text}"));
        }
        if share > 1.0 {
            return Err(format!("eviction percentage threshold {name} must be <= 100%: {text}"));
        }
        Amount::Share(share)
    } else {
        let quantity = Quantity::parse(text)?;
        if quantity.sign() <= 0 {
            return Err(format!("eviction threshold {name} must be positive: {}", quantity.to_api().0));
        }
        Amount::Exact(quantity)
    };
    Ok(Some(Threshold { signal, least, grace: None, reclaim: None }))
}

fn share(percent: &str) -> Result<f32, String> {
    let number: f32 =
        percent.parse().map_err(|_| format!("strconv.ParseFloat: parsing {percent:?}: invalid syntax"))?;
    Ok(number / 100.0)
}

fn grace(signal: &str, text: &str) -> Result<(Signal, Duration), String> {
    if text.starts_with('-') {
        return Err(format!("invalid eviction grace period specified: {text}, must be a positive value"));
    }
    Ok((Signal::parse(signal)?, coracle_meta::cron::duration(text)?))
}

fn reclaim(name: &str, text: &str) -> Result<Amount, String> {
    if let Some(percent) = text.strip_suffix('%') {
        let share = share(percent)?;
        if share <= 0.0 {
            return Err(format!("eviction percentage minimum reclaim {name} must be positive: {text}"));
        }
        return Ok(Amount::Share(share));
    }
    let quantity = Quantity::parse(text)?;
    if quantity.sign() < 0 {
        return Err(format!("negative eviction minimum reclaim specified for {name}"));
    }
    Ok(Amount::Exact(quantity))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(rows: &[(&str, &str)]) -> Texts {
        rows.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn configured(
        hard: &[(&str, &str)],
        soft: &[(&str, &str)],
        grace: &[(&str, &str)],
        reclaim: &[(&str, &str)],
        merge: bool,
    ) -> Result<EvictionConfig, String> {
        let mut config = EvictionConfig::standard();
        let (hard, soft, grace, reclaim) = (texts(hard), texts(soft), texts(grace), texts(reclaim));
        let texts = EvictionTexts { hard: &hard, soft: &soft, grace: &grace, reclaim: &reclaim, merge };
        config.configure(texts).map(|()| config)
    }

    fn names(config: &EvictionConfig) -> Vec<&'static str> {
        let mut names: Vec<_> = config.thresholds.iter().map(|t| t.signal.name()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn given_thresholds_replace_the_standard_ones_unless_they_are_merged() {
        let hard = [("memory.available", "1Gi"), ("nodefs.available", "10%"), ("imagefs.available", "0%")];
        let alone = configured(&hard, &[], &[], &[], false).expect("thresholds");
        assert_eq!(names(&alone), ["allocatableMemory.available", "memory.available", "nodefs.available"]);
        let merged = configured(&hard, &[], &[], &[], true).expect("thresholds");
        assert_eq!(
            names(&merged),
            [
                "allocatableMemory.available",
                "imagefs.inodesFree",
                "memory.available",
                "nodefs.available",
                "nodefs.inodesFree"
            ]
        );
        let kept = merged.kept_free(Capacity { memory: 8 << 30, disk: 1000 });
        assert_eq!((kept.memory, kept.disk), (1 << 30, 100));
    }

    #[test]
    fn soft_thresholds_have_a_time_of_grace_and_keep_nothing_from_pods() {
        let soft = [("memory.available", "2Gi")];
        let config =
            configured(&[], &soft, &[("memory.available", "1m30s")], &[("memory.available", "500Mi")], false);
        let config = config.expect("thresholds");
        let last = config.thresholds.last().expect("one");
        assert_eq!((last.signal, last.grace), (Signal::Memory, Some(Duration::from_secs(90))));
        assert_eq!(last.reclaim, Some(Amount::Exact(Quantity::parse("500Mi").expect("a quantity"))));
        assert_eq!(config.kept_free(Capacity { memory: 8 << 30, disk: 0 }).memory, 100 << 20);
    }

    #[test]
    fn what_cannot_be_is_refused_in_upstreams_words() {
        let hard = |name, text| configured(&[(name, text)], &[], &[], &[], false).err().unwrap_or_default();
        assert_eq!(hard("memory", "1Gi"), "unsupported eviction signal memory");
        assert_eq!(hard("memory.available", "0"), "eviction threshold memory.available must be positive: 0");
        assert_eq!(
            hard("pid.available", "120%"),
            "eviction percentage threshold pid.available must be <= 100%: 120%"
        );
        assert_eq!(
            hard("pid.available", "-1%"),
            "eviction percentage threshold pid.available must be >= 0%: -1%"
        );
        assert_eq!(
            configured(&[], &[("memory.available", "1Gi")], &[], &[], false).err().unwrap_or_default(),
            "grace period must be specified for the soft eviction threshold memory.available"
        );
        let negative = configured(&[], &[], &[("memory.available", "-5s")], &[], false).err();
        assert_eq!(
            negative.unwrap_or_default(),
            "invalid eviction grace period specified: -5s, must be a positive value"
        );
        let reclaim = configured(&[], &[], &[], &[("nodefs.available", "0%")], false).err();
        assert_eq!(
            reclaim.unwrap_or_default(),
            "eviction percentage minimum reclaim nodefs.available must be positive: 0%"
        );
    }

    #[test]
    fn a_share_of_a_large_disk_is_bounded() {
        let disk = Amount::ShareUpTo(0.05, 4 << 30);
        assert_eq!(disk.of(1 << 40).value(), 4 << 30);
        assert_eq!(disk.of(1000).value(), 50);
    }
}
