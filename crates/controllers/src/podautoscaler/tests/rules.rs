//! Stabilization, scaling rules and bounds.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use rand::Rng as _;
use serde_json::{Value, json};

use super::super::behavior::{Bounds, History, Normalized};
use crate::testing::seeded;

const WINDOW: SignedDuration = SignedDuration::from_secs(300);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

fn behavior(up: Value, down: Value) -> HorizontalPodAutoscalerBehavior {
    serde_json::from_value(json!({ "scaleUp": up, "scaleDown": down })).expect("a behavior")
}

fn rules(window: i32, select: &str, policies: &[(&str, i32, i32)]) -> Value {
    let policy = |(kind, value, period): &(&str, i32, i32)| json!({ "type": kind, "value": value, "periodSeconds": period });
    json!({ "stabilizationWindowSeconds": window, "selectPolicy": select,
        "policies": policies.iter().map(policy).collect::<Vec<_>>() })
}

fn bounds(current: i32) -> Bounds {
    Bounds { min: 1, max: 100, current }
}

#[test]
fn without_rules_the_highest_recent_recommendation_holds_back_scaling_down() {
    let mut history = History::default();
    history.begin(5, at(0));
    let mut ask = |wish, second| history.normalize(None, wish, bounds(5), WINDOW, at(second));
    let held = ask(2, 15);
    assert_eq!((held.replicas, held.able.0, held.limit.0), (5, "ScaleDownStabilized", "DesiredWithinRange"));
    assert_eq!(ask(3, 300).replicas, 5, "the first still counts at the window's very end");
    let freed = ask(2, 301);
    assert_eq!((freed.replicas, freed.able.0), (3, "ScaleDownStabilized"));
    let now = ask(9, 302);
    assert_eq!((now.replicas, now.able.0), (9, "ReadyForNewScale"), "up goes at once");
}

#[test]
fn without_rules_growth_is_limited_to_twice_as_many_or_four() {
    let ask = |wish, current, max| {
        History::default().normalize(None, wish, Bounds { min: 2, max, current }, WINDOW, at(0))
    };
    let check = |got: Normalized, replicas, limited, reason| {
        assert_eq!((got.replicas, got.limited, got.limit.0), (replicas, limited, reason));
    };
    check(ask(50, 10, 100), 20, true, "ScaleUpLimit");
    check(ask(50, 1, 100), 4, true, "ScaleUpLimit");
    check(ask(50, 10, 15), 15, true, "TooManyReplicas");
    check(ask(1, 10, 15), 2, true, "TooFewReplicas");
    check(ask(9, 10, 15), 9, false, "DesiredWithinRange");
}

#[test]
fn policies_limit_the_change_within_their_period_and_the_selected_one_counts() {
    let policies = [("Pods", 4, 60), ("Percent", 100, 60)];
    let ask = |select: &str, history: &mut History, wish, current, second| {
        let all = behavior(rules(0, select, &policies), rules(0, select, &policies));
        let got = history.normalize(Some(&all), wish, bounds(current), WINDOW, at(second));
        (got.replicas, got.limit.0)
    };
    let mut history = History::default();
    assert_eq!(ask("Max", &mut history, 50, 10, 0), (20, "ScaleUpLimit"));
    assert_eq!(ask("Min", &mut history, 50, 10, 0), (14, "ScaleUpLimit"));
    assert_eq!(ask("Disabled", &mut history, 50, 10, 0), (10, "ScaleUpLimit"));
    assert_eq!(ask("Max", &mut history, 2, 10, 0), (2, "DesiredWithinRange"));
    assert_eq!(ask("Min", &mut history, 2, 10, 0), (6, "ScaleDownLimit"));
    assert_eq!(ask("Disabled", &mut history, 2, 10, 0), (10, "ScaleDownLimit"));
    // What was added within the period counts.
    let all = behavior(rules(0, "Min", &policies), rules(0, "Min", &policies));
    history.scaled(Some(&all), 10, 14, at(1));
    assert_eq!(ask("Min", &mut history, 50, 14, 30), (14, "ScaleUpLimit"));
    assert_eq!(ask("Min", &mut history, 50, 14, 61), (18, "ScaleUpLimit"));
}

#[test]
fn windows_hold_back_either_direction() {
    let one = behavior(rules(60, "Max", &[("Percent", 900, 60)]), rules(60, "Max", &[("Percent", 100, 60)]));
    let mut history = History::default();
    history.begin(10, at(0));
    let mut ask = |wish, second| history.normalize(Some(&one), wish, bounds(10), WINDOW, at(second));
    let held = ask(20, 10);
    assert_eq!((held.replicas, held.able.0), (10, "ScaleUpStabilized"));
    assert_eq!(ask(15, 61).replicas, 15, "the lowest of the last minute");
    let held = ask(2, 62);
    assert_eq!((held.replicas, held.able.0), (10, "ScaleDownStabilized"));
}

#[test]
fn in_any_history_bounds_hold_and_no_period_sees_more_than_its_policy_allows() {
    let mut random = seeded(7);
    for _ in 0..200 {
        let (value, period) = (random.random_range(1..6), random.random_range(15..120));
        let one = behavior(
            rules(random.random_range(0..60), "Max", &[("Pods", value, period)]),
            rules(random.random_range(0..120), "Max", &[("Pods", value, period)]),
        );
        let (min, max) = (random.random_range(1..5), random.random_range(5..40));
        let mut current = random.random_range(min..=max);
        let (mut history, mut second) = (History::default(), 0);
        let mut sizes = vec![(0, current)];
        history.begin(current, at(0));
        for _ in 0..200 {
            second += random.random_range(1..30);
            let wish = random.random_range(0..60);
            let bounds = Bounds { min, max, current };
            let got = history.normalize(Some(&one), wish, bounds, WINDOW, at(second)).replicas;
            assert!((min..=max).contains(&got), "{got} is not within {min}..{max}");
            if got != current {
                // At most `value` away from the size that the period began with.
                let from = second - i64::from(period);
                let start =
                    sizes.iter().rev().find(|(at, _)| *at <= from).map_or(sizes[0].1, |(_, size)| *size);
                let fair = if got > current { got <= start + value } else { got >= start - value };
                assert!(fair, "{current} to {got}, from {start} within {period} s, by {value} at the most");
                history.scaled(Some(&one), current, got, at(second));
                current = got;
                sizes.push((second, current));
            }
        }
    }
}
