//! How many replicas figures ask for. The cases are those that upstream's documentation of the algorithm tells.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use rand::Rng as _;
use serde_json::{Value, json};

use super::super::replicas::{Calculator, Sample, Samples, Tolerances};
use crate::testing::seeded;

fn now() -> Timestamp {
    Timestamp::from_second(10_000).expect("in range")
}

/// A pod that requests one CPU, started and ready so many seconds ago.
fn pod(name: &str, phase: &str, ready: bool, started: i64, since: i64) -> Arc<Pod> {
    let at = |ago: i64| json!((now() - SignedDuration::from_secs(ago)).to_string());
    let status = if ready { "True" } else { "False" };
    let value: Value = json!({
        "metadata": { "name": name },
        "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1", "memory": "1Ki" } } }] },
        "status": { "phase": phase, "startTime": at(started),
            "conditions": [{ "type": "Ready", "status": status, "lastTransitionTime": at(since) }] },
    });
    Arc::new(serde_json::from_value(value).expect("a pod"))
}

fn running(n: usize) -> Vec<Arc<Pod>> {
    (0..n).map(|i| pod(&format!("p{i}"), "Running", true, 3600, 3600)).collect()
}

fn samples(milli: &[i64]) -> Samples {
    let sample = |milli| Sample { at: now(), window: SignedDuration::from_secs(15), milli };
    milli.iter().enumerate().map(|(i, milli)| (format!("p{i}"), sample(*milli))).collect()
}

fn calculator(pods: &[Arc<Pod>]) -> Calculator<'_> {
    Calculator {
        pods,
        now: now(),
        cpu_initialization: SignedDuration::from_mins(2),
        readiness_delay: SignedDuration::from_secs(10),
        tolerances: Tolerances { down: 0.1, up: 0.1 },
    }
}

/// CPU figures of pods, their number and a target in percent; the replicas and the percentage wanted.
#[track_caller]
fn check(pods: &[Arc<Pod>], milli: &[i64], target: i32, want: (i32, i32)) {
    let current = i32::try_from(pods.len()).expect("few");
    let got = calculator(pods).utilization(samples(milli), current, target, "cpu", "").expect("a proposal");
    assert_eq!((got.0, got.1.percent), want);
}

#[test]
fn usage_over_the_target_scales_up_and_below_it_down_in_proportion() {
    check(&running(3), &[300, 500, 700], 30, (5, 50));
    check(&running(5), &[100, 300, 500, 250, 250], 50, (3, 28));
    check(&running(4), &[10, 10, 10, 10], 50, (1, 1));
}

#[test]
fn within_the_tolerance_nothing_changes() {
    check(&running(3), &[1010, 1030, 1020], 100, (3, 102));
    check(&running(2), &[900, 900], 100, (2, 90));
    check(&running(2), &[890, 890], 100, (2, 89));
    check(&running(10), &[890; 10], 100, (9, 89));
}

#[test]
fn pods_without_figures_dampen_a_change_and_never_turn_it() {
    // Up: they are taken to use nothing.
    check(&running(3), &[900, 900], 50, (4, 90));
    // Down: all of their request.
    check(&running(4), &[100, 100, 100], 50, (3, 10));
    // Too few figures: the direction would turn, so nothing changes.
    check(&running(4), &[700], 50, (4, 70));
}

#[test]
fn pods_that_are_not_ready_count_as_idle_when_scaling_up_and_not_at_all_when_scaling_down() {
    let mut pods = running(3);
    pods[0] = pod("p0", "Running", false, 60, 60);
    check(&pods, &[100, 500, 700], 30, (4, 60));
    check(&pods, &[100, 100, 100], 50, (1, 10));
    pods[0] = pod("p0", "Pending", false, 60, 60);
    check(&pods, &[0, 500, 700], 30, (4, 60));
}

#[test]
fn failed_and_leaving_pods_do_not_count() {
    let mut pods = running(4);
    pods[2] = pod("p2", "Failed", false, 3600, 3600);
    let mut leaving = (*pods[3]).clone();
    leaving.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    pods[3] = Arc::new(leaving);
    check(&pods, &[500, 700], 50, (3, 60));
}

#[test]
fn figures_of_a_start_count_only_once_a_whole_window_was_ready() {
    let count = |pod: Arc<Pod>| {
        let two = [pod, self::pod("p1", "Running", true, 3600, 3600)];
        calculator(&two).utilization(samples(&[2000, 500]), 2, 50, "cpu", "").expect("a proposal").1.percent
    };
    assert_eq!(count(pod("p0", "Running", true, 60, 20)), 125, "a window of 15 s has passed since");
    assert_eq!(count(pod("p0", "Running", true, 60, 10)), 50, "no whole window yet");
    assert_eq!(count(pod("p0", "Running", false, 300, 200)), 125, "was ready once: its figure counts");
    assert_eq!(count(pod("p0", "Running", false, 300, 295)), 50, "was never ready");
}

#[test]
fn a_request_that_is_missing_is_named() {
    let pods = running(1);
    let ask = |resource: &str, container: &str| {
        calculator(&pods).utilization(samples(&[1]), 1, 50, resource, container).expect_err("no request")
    };
    assert_eq!(ask("gpu", ""), "missing request for gpu in container c of Pod p0");
    assert_eq!(ask("cpu", "x"), "container x not found in Pod p0");
    let none = calculator(&pods).utilization(Samples::new(), 1, 50, "cpu", "").expect_err("no figures");
    assert_eq!(none, "did not receive metrics for targeted pods (pods might be unready)");
    let none = calculator(&[]).average(samples(&[1]), 1, 50, "").expect_err("no pods");
    assert_eq!(none, "no pods returned by selector while calculating replica count");
}

#[test]
fn one_figure_of_all_is_held_against_the_ready_pods_or_shared_among_the_present() {
    let pods = running(3);
    let calculator = calculator(&pods);
    assert_eq!(calculator.value(33_000, 3, 20_000), Ok(5));
    assert_eq!(calculator.value(20_500, 3, 20_000), Ok(3));
    assert_eq!(calculator.value(i64::MAX, 3, 1), Ok(i32::MAX));
    assert_eq!(calculator.share(8_600, 3, 2_000), (5, 2_867));
    assert_eq!(calculator.share(6_100, 3, 2_000), (3, 2_034));
    assert_eq!(calculator.share(i64::MAX, 3, 1), (i32::MAX, i64::MAX));
}

#[test]
fn whatever_the_figures_a_proposal_is_on_the_side_of_the_usage_and_unready_pods_only_dampen_it() {
    let mut random = seeded(5);
    for _ in 0..5_000 {
        let n = random.random_range(1..12_usize);
        let pods: Vec<_> = (0..n)
            .map(|i| match random.random_range(0..6) {
                0 => pod(&format!("p{i}"), "Pending", false, 10, 10),
                1 => pod(&format!("p{i}"), "Running", false, 60, 50),
                _ => pod(&format!("p{i}"), "Running", true, 3600, 3600),
            })
            .collect();
        let known = random.random_range(1..=n);
        let milli: Vec<i64> = (0..known).map(|_| random.random_range(0..3_000)).collect();
        let target = random.random_range(10..150);
        let current = i32::try_from(n).expect("few");
        let Ok((replicas, used)) = calculator(&pods).utilization(samples(&milli), current, target, "cpu", "")
        else {
            continue;
        };
        let ready = pods.iter().filter(|p| coracle_meta::pod::is_ready(p)).count();
        let counted = pods.iter().take(known).filter(|p| coracle_meta::pod::is_ready(p)).count();
        if used.percent > target {
            // Those that are missing or not ready can only lower it, but for the rounding of percentages.
            let bare =
                f64::from(used.percent) / f64::from(target) * f64::from(u32::try_from(counted).expect("few"));
            assert!(
                replicas <= current.max(bare.ceil() as i32 + 1),
                "{replicas} of {current} for {used:?} at {target}"
            );
        } else if ready == n && known == n {
            assert!(replicas <= current, "{replicas} of {current} for {used:?} at {target}");
        }
        if known == n && ready == n {
            let exact = (f64::from(used.percent) / f64::from(target) * f64::from(current)).ceil() as i32;
            assert!(replicas == exact || replicas == current);
        }
    }
}
