//! Sets of completion indexes, in the form in which a Job's status has them: `1,3-5,7`.

use std::fmt;

/// Ordered, disjoint, not touching intervals of indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads the text form; what is not a number or not below `completions` is left out.
    pub(super) fn parse(text: &str, completions: i32) -> Self {
        let mut set = Self::default();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>())
                && first < completions
            {
                set.insert_range(first, last.min(completions - 1));
            }
        }
        set
    }

    fn insert_range(&mut self, first: i32, last: i32) {
        if first > last {
            return;
        }
        let start = self.0.partition_point(|(_, end)| i64::from(*end) + 1 < i64::from(first));
        let end = self.0.partition_point(|(begin, _)| i64::from(*begin) <= i64::from(last) + 1);
        let merged = self.0[start..end]
            .iter()
            .fold((first, last), |(first, last), (a, b)| (first.min(*a), last.max(*b)));
        self.0.splice(start..end, [merged]);
    }

    /// Adds an index.
    pub(super) fn insert(&mut self, index: i32) {
        self.insert_range(index, index);
    }

    /// Adds all of another set.
    pub(super) fn extend(&mut self, other: &Self) {
        other.0.iter().for_each(|(first, last)| self.insert_range(*first, *last));
    }

    /// Whether it has an index.
    pub(super) fn has(&self, index: i32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    /// How many indexes it has.
    pub(super) fn total(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// How many of the other's indexes it has.
    pub(super) fn overlap(&self, other: &Self) -> i32 {
        let common = |(a, b): &(i32, i32)| -> i32 {
            other.0.iter().map(|(c, d)| (*b.min(d) - *a.max(c) + 1).max(0)).sum()
        };
        self.0.iter().map(common).sum()
    }

    /// The lowest `count` indexes below `completions` that it does not have.
    pub(super) fn first_missing(&self, count: usize, completions: i32) -> Vec<i32> {
        let mut missing = Vec::new();
        let mut next = 0;
        let end = (completions, completions);
        for (first, last) in self.0.iter().chain([&end]) {
            while next < (*first).min(completions) && missing.len() < count {
                missing.push(next);
                next += 1;
            }
            next = next.max(last.saturating_add(1));
        }
        missing
    }
}

impl FromIterator<i32> for Indexes {
    fn from_iter<I: IntoIterator<Item = i32>>(indexes: I) -> Self {
        let mut set = Self::default();
        indexes.into_iter().for_each(|index| set.insert(index));
        set
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (first, last)) in self.0.iter().enumerate() {
            let comma = if position > 0 { "," } else { "" };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::Rng;

    use super::*;
    use crate::testing::seeded;

    #[test]
    fn indexes_are_written_and_read_as_intervals() {
        let set: Indexes = [7, 1, 4, 3, 5, 9, 8].into_iter().collect();
        assert_eq!(set.to_string(), "1,3-5,7-9");
        assert_eq!(Indexes::parse("1,3-5,7-9", 100), set);
        assert_eq!(Indexes::parse("1,3-5,7-9", 5).to_string(), "1,3,4");
        assert_eq!(Indexes::parse("x,2-y,3", 5).to_string(), "3");
        assert_eq!(set.first_missing(4, 12), [0, 2, 6, 10]);
        assert_eq!(set.first_missing(4, 7), [0, 2, 6]);
        assert_eq!(set.overlap(&Indexes::parse("0-4", 9)), 3);
    }

    #[test]
    fn the_set_agrees_with_a_plain_set_of_numbers() {
        let mut rng = seeded(1);
        for _ in 0..200 {
            let (mut set, mut plain) = (Indexes::default(), BTreeSet::new());
            for _ in 0..rng.random_range(0..40) {
                let index = rng.random_range(0..50);
                set.insert(index);
                plain.insert(index);
            }
            assert_eq!(usize::try_from(set.total()), Ok(plain.len()));
            assert!((0..50).all(|i| set.has(i) == plain.contains(&i)));
            let missing: Vec<i32> = (0..50).filter(|i| !plain.contains(i)).take(5).collect();
            assert_eq!(set.first_missing(5, 50), missing);
            assert_eq!(Indexes::parse(&set.to_string(), 50), set);
        }
    }
}
