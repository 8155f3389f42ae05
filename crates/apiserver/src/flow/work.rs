//! How many seats a request is estimated to need. Follows upstream's estimators in
//! `apiserver/pkg/util/flowcontrol/request`; where a figure is ours, it says why.

use std::time::Duration;

use super::queues::Work;

/// Bytes that one seat stands for.
const BYTES_PER_SEAT: u64 = 100_000;
/// A list is sent in blocks, however large it is: it is not counted with more.
const MOST_BYTES: u64 = 1_000_000;
/// Most seats of a list or a write.
const MOST_SEATS: u64 = 10;
/// Watchers whose events cost as much as a seat.
const WATCHERS_PER_SEAT: u64 = 10;
/// How long the events of a write take. Upstream says 5 ms, as each watcher there encodes for itself; here an event
/// is encoded once for all of them.
const EVENT: Duration = Duration::from_micros(500);

/// What a list or the beginning of a watch reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    /// The name of one object is given.
    pub(crate) single: bool,
    /// `limit`, if any.
    pub(crate) limit: u64,
    /// Objects of the resource.
    pub(crate) objects: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
}

/// The work of a list, or of a watch that begins with the objects there are.
pub(crate) fn list(reading: Reading, most: u64) -> Work {
    let Reading { single, limit, objects, bytes } = reading;
    let read = match (single, limit) {
        (true, _) => 1,
        (false, 0) => objects,
        (false, limit) => limit.min(objects),
    };
    let bytes = bytes.checked_div(objects).unwrap_or(0).saturating_mul(read);
    Work::of(bytes.min(MOST_BYTES).div_ceil(BYTES_PER_SEAT).clamp(1, most.clamp(1, MOST_SEATS)))
}

/// The work of a write whose event so many watchers get.
pub(crate) fn write(watchers: u64, most: u64) -> Work {
    if watchers < WATCHERS_PER_SEAT {
        return Work::of(1);
    }
    let seats = watchers.div_ceil(WATCHERS_PER_SEAT);
    let last = seats.min(most.clamp(1, MOST_SEATS));
    let lingers = EVENT.mul_f64(ratio(seats, last));
    Work { seats: 1, last, lingers }
}

#[expect(clippy::cast_precision_loss, reason = "seats are few")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_needs_seats_by_the_bytes_it_reads() {
        let reading = Reading { single: false, limit: 0, objects: 1000, bytes: 400_000 };
        assert_eq!(list(reading, 10), Work::of(4));
        assert_eq!(list(reading, 2), Work::of(2), "no more than the level allows");
        assert_eq!(list(Reading { limit: 500, ..reading }, 10), Work::of(2));
        assert_eq!(list(Reading { single: true, ..reading }, 10), Work::of(1));
        assert_eq!(list(Reading { bytes: u64::MAX, ..reading }, 100), Work::of(10));
        assert_eq!(list(Reading { objects: 0, bytes: 0, ..reading }, 10), Work::of(1));
    }

    #[test]
    fn a_write_holds_seats_for_its_watchers() {
        assert_eq!(write(9, 10), Work::of(1));
        assert_eq!(write(25, 10), Work { seats: 1, last: 3, lingers: EVENT });
        let many = write(1000, 10);
        assert_eq!((many.last, many.lingers), (10, EVENT * 10), "the same area on fewer seats");
    }
}
