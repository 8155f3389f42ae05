//! Shuffle sharding: each flow has a hand of queues of its own, so that a flood fills few queues of others.

/// Most cards of a hand: more would need more than the 60 bits of entropy that upstream's validation allows.
pub(super) const MOST: usize = 32;

/// Deals `hand.len()` different cards out of `deck` by the bits of `hash`; all hands are equally likely.
pub(super) fn deal(mut hash: u64, deck: usize, hand: &mut [usize]) {
    for (i, card) in hand.iter_mut().enumerate() {
        let left = deck.saturating_sub(i).max(1) as u64;
        *card = usize::try_from(hash % left).unwrap_or(0);
        hash /= left;
    }
    // Each card counts among those that were left when it was dealt: step back over the earlier ones, the latest
    // first, to find where it lies in the whole deck. From the end, as the earlier ones are still relative then.
    for i in (1..hand.len()).rev() {
        for earlier in (0..i).rev() {
            hand[i] += usize::from(hand[i] >= hand[earlier]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_hand_has_different_cards_of_the_deck() {
        let mut hand = [0; 6];
        for seed in 0..5000u64 {
            deal(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), 64, &mut hand);
            let different: BTreeSet<usize> = hand.iter().copied().collect();
            assert_eq!(different.len(), 6, "{hand:?}");
            assert!(hand.iter().all(|card| *card < 64), "{hand:?}");
        }
        deal(u64::MAX, 6, &mut hand);
        assert_eq!(hand.iter().copied().collect::<BTreeSet<_>>(), (0..6).collect());
    }

    #[test]
    fn every_hand_of_a_small_deck_is_dealt() {
        let mut seen = BTreeSet::new();
        let mut hand = [0; 2];
        for hash in 0..12 {
            deal(hash, 4, &mut hand);
            seen.insert(hand);
        }
        assert_eq!(seen.len(), 12, "4 times 3 ordered pairs");
    }
}
