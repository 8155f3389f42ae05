//! Gives memory back to the kernel once things are quiet: what a burst of work freed, and those pages of the program
//! that only the start or the burst needed.

use std::time::Duration;

use tokio::task::spawn_blocking;

use crate::allocator;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(10);
/// Less growth than this is not worth a look at the heap.
const WORTH: u64 = 4 << 20;
/// So many looks later what a burst left in caches for a while is free, too.
const LATER: u32 = 10;
/// A tick of the times in /proc: the kernel's USER_HZ, 100 on x86 and ARM.
const TICK: Duration = Duration::from_millis(10);

/// What this process has and has used so far.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    /// Memory in bytes.
    resident: u64,
    /// Processor time.
    processor: Duration,
}

impl Usage {
    /// As the kernel tells it; `None` without /proc.
    fn now() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kilobytes: u64 = resident.trim().strip_suffix("kB")?.trim().parse().ok()?;
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // Fields 14 and 15; the name before them may hold anything.
        let fields = stat.rsplit_once(") ")?.1.split(' ').skip(11).take(2);
        let ticks: u32 = fields.filter_map(|ticks| ticks.parse::<u32>().ok()).sum();
        Some(Self { resident: kilobytes << 10, processor: TICK * ticks })
    }
}

/// What is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    /// What was freed.
    Heap,
    /// That and pages of the program.
    All,
}

/// Decides when memory is given back.
#[derive(Debug, Default)]
struct Tender {
    last: Usage,
    /// What was in use at the look after memory had been given back; `None` until then.
    floor: Option<u64>,
    given: bool,
    /// Looks until what was freed since is given back as well.
    again: u32,
}

impl Tender {
    /// Whether now is the time: there is more than there was, and the last interval was quiet.
    fn due(&mut self, now: Usage) -> Due {
        let worked = now.processor.saturating_sub(self.last.processor);
        self.last = now;
        if std::mem::take(&mut self.given) {
            self.floor = Some(now.resident);
        }
        let has_grown = self.floor.is_none_or(|floor| now.resident > floor + WORTH);
        let is_quiet = worked < LOOK / 50;
        if has_grown && is_quiet {
            (self.given, self.again) = (true, LATER);
            return Due::All;
        }
        let waited = self.again == 1;
        if self.again > 1 || waited && is_quiet {
            self.again -= 1;
        }
        self.given = waited && is_quiet;
        if self.given { Due::Heap } else { Due::Nothing }
    }
}

/// Works until it is dropped.
pub async fn give_back_when_quiet() {
    allocator::tend();
    let mut tender = Tender::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(now) = Usage::now() else { return };
        let due = tender.due(now);
        if due != Due::Nothing && spawn_blocking(move || give_back(due)).await.is_err() {
            return;
        }
    }
}

fn give_back(due: Due) {
    allocator::give_back();
    if due != Due::All {
        return;
    }
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for (start, length) in maps.lines().filter_map(program_text) {
        // SAFETY: pages of a file that nobody writes to through this mapping: the next access reads them again.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Start and length of a mapping of program text: of a file, to be read and executed, never written.
fn program_text(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, rights, _offset, _device, inode) =
        (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if rights != "r-xp" || inode == "0" {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    Some((start, usize::from_str_radix(end, 16).ok()?.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(megabytes: u64, milliseconds: u64) -> Usage {
        Usage { resident: megabytes << 20, processor: Duration::from_millis(milliseconds) }
    }

    #[test]
    fn memory_is_given_back_after_the_start_and_after_a_burst_when_it_is_quiet() {
        let mut tender = Tender::default();
        assert_eq!(tender.due(usage(60, 900)), Due::Nothing, "it starts");
        assert_eq!(tender.due(usage(60, 910)), Due::All);
        assert_eq!(tender.due(usage(30, 920)), Due::Nothing, "30 MB are needed");
        assert_eq!(tender.due(usage(33, 930)), Due::Nothing, "little more");
        assert_eq!(tender.due(usage(200, 5930)), Due::Nothing, "at work");
        assert_eq!(tender.due(usage(200, 5940)), Due::All);
        assert_eq!(tender.due(usage(150, 5950)), Due::Nothing, "that is what is needed now");
        assert_eq!(tender.due(usage(150, 5960)), Due::Nothing);
    }

    #[test]
    fn what_is_freed_some_time_after_a_burst_is_given_back_once() {
        let mut tender = Tender::default();
        assert_eq!(tender.due(usage(60, 10)), Due::All);
        let mut looks = (1..).map(|n| tender.due(usage(50, 10 + n)));
        assert_eq!(looks.position(|due| due == Due::Heap), Some(LATER as usize - 1));
        assert!(looks.take(100).all(|due| due == Due::Nothing));
    }

    #[test]
    fn only_text_of_a_file_is_program_text() {
        let text = "00400000-00600000 r-xp 00000000 fe:00 1234    /usr/local/bin/coracle";
        assert_eq!(program_text(text), Some((0x40_0000, 0x20_0000)));
        for other in [
            "00600000-00700000 r--p 00200000 fe:00 1234    /usr/local/bin/coracle",
            "7fff0000-7fff1000 r-xp 00000000 00:00 0    [vdso]",
            "nonsense",
        ] {
            assert_eq!(program_text(other), None, "{other}");
        }
    }

    #[test]
    fn a_program_goes_on_after_its_text_was_dropped() {
        let before: Vec<String> = (0..1000).map(|n| format!("{n:04}")).collect();
        give_back(Due::All);
        assert_eq!(before.concat().len(), 4000);
        assert!(Usage::now().is_some_and(|usage| usage.resident > 0));
    }
}
