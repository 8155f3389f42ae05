//! Random histories of Jobs that users suspend, resize and take pods from, with every policy, and a controller that
//! crashes between its writes.

use super::*;

/// What a history is about.
struct Plan {
    extra: Value,
    /// Whether users suspend it, change its parallelism and delete pods.
    meddling: bool,
    failing: f64,
}

fn any_plan(rng: &mut StdRng) -> Plan {
    let indexed = rng.random_bool(0.5);
    let mut extra = json!({ "completions": rng.random_range(1..8), "parallelism": rng.random_range(1..4),
        "backoffLimit": 100_000, "completionMode": if indexed { "Indexed" } else { "NonIndexed" } });
    if indexed && rng.random_bool(0.5) {
        extra["backoffLimit"] = i32::MAX.into();
        extra["backoffLimitPerIndex"] = rng.random_range(0..3).into();
    }
    match rng.random_range(0..3) {
        0 => extra["podReplacementPolicy"] = "Failed".into(),
        1 => {
            extra["podReplacementPolicy"] = "Failed".into();
            extra["podFailurePolicy"] = json!({ "rules": [{ "action": "Ignore",
                "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] }] });
        }
        _ => {}
    }
    Plan { extra, meddling: rng.random_bool(0.5), failing: f64::from(rng.random_range(0..8)) / 10.0 }
}

impl World {
    fn spec(&mut self) -> &mut JobSpec {
        self.job.spec.as_mut().expect("spec")
    }

    /// Users suspend and resume it, want more or fewer at once, and delete pods.
    fn meddle(&mut self, rng: &mut StdRng) {
        match rng.random_range(0..60) {
            0 => self.spec().suspend = Some(true),
            1..4 => self.spec().suspend = None,
            4 => self.spec().parallelism = Some(rng.random_range(1..4)),
            5 if !self.pods.is_empty() => {
                let which = rng.random_range(0..self.pods.len());
                let (uid, pod) = self.pods.iter().nth(which).expect("in range");
                let (uid, index, tracked) = (uid.clone(), index_of(pod), is_tracked(pod));
                if podutil::is_active(pod) {
                    self.delete(&uid);
                    if rng.random_bool(0.5) {
                        self.disrupt(&uid);
                    }
                    // With other policies it has failed from now on; the kubelets say so later.
                    if tracked {
                        self.ended.insert(uid, (false, index));
                    }
                }
            }
            _ => {}
        }
    }

    /// Says that the pod does not fail by itself.
    fn disrupt(&mut self, uid: &str) {
        let target = json!({ "type": "DisruptionTarget", "status": "True" });
        if let Some(pod) = self.pods.get_mut(uid) {
            let conditions = &mut Arc::make_mut(pod).status.get_or_insert_default().conditions;
            conditions.get_or_insert_default().push(serde_json::from_value(target).expect("a condition"));
        }
    }

    /// How often each pod stands in the status, by its numbers and lists.
    fn counted(&self) -> (i32, i32) {
        let status = self.status();
        let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let length = |uids: &Option<Vec<String>>| count(uids.as_ref().map_or(0, Vec::len));
        (
            status.succeeded.unwrap_or(0) + length(&uncounted.succeeded),
            status.failed.unwrap_or(0) + length(&uncounted.failed),
        )
    }
}

fn any_history(seed: u64) {
    let mut rng = seeded(seed);
    let plan = any_plan(&mut rng);
    let mut world = World::new(job(&plan.extra));
    let (mut before, mut parallelism) = ((0, 0), 3);
    for step in 0..6000 {
        world.now += 5;
        let wild = step < 2500;
        if plan.meddling && wild {
            world.meddle(&mut rng);
        } else {
            world.spec().suspend = None;
        }
        world.kubelet(&mut rng, plan.failing);
        world.pass(&mut rng, if wild { 0.15 } else { 0.0 });
        world.check(seed);
        let (succeeded, failed) = world.counted();
        assert!(failed >= before.1 && succeeded >= before.0, "seed {seed}: counted, then forgotten");
        before = (succeeded, failed);
        let uncounted = world.status().uncounted_terminated_pods.unwrap_or_default();
        let mut uids: Vec<String> =
            uncounted.succeeded.into_iter().chain(uncounted.failed).flatten().collect();
        let listed = uids.len();
        uids.sort();
        uids.dedup();
        assert_eq!(uids.len(), listed, "seed {seed}: a pod stands in two lists");
        // Fewer at once are wanted from the pass on that sees it.
        let wanted = world.spec().parallelism.unwrap_or(1);
        let active = world.pods.values().filter(|pod| podutil::is_active(pod)).count();
        assert!(active <= parallelism.max(3), "seed {seed}: {active} pods at once");
        parallelism = usize::try_from(wanted).expect("few");
        if world.is_over() {
            break;
        }
    }
    assert!(world.is_over(), "seed {seed}: {:?} {:?}", plan.extra, world.status());
    let status = world.status();
    let total = world.job.spec.as_ref().and_then(|spec| spec.completions).unwrap_or(0);
    let bad = Indexes::parse(status.failed_indexes.as_deref().unwrap_or(""), total).total();
    assert_eq!(status.succeeded.unwrap_or(0) + bad, total, "seed {seed}: {status:?}");
    assert!(status.uncounted_terminated_pods.is_none_or(|u| u.succeeded.is_none() && u.failed.is_none()));
    assert!(world.pods.values().all(|pod| !is_tracked(pod)), "seed {seed}: a pod is held for ever");
    if !plan.meddling && plan.extra["podFailurePolicy"].is_null() {
        let really = world.ended.values().filter(|(succeeds, _)| !succeeds).count();
        assert_eq!(status.failed.unwrap_or(0), count(really), "seed {seed}: every failure is counted");
    }
}

#[test]
fn whatever_users_and_pods_do_and_wherever_the_controller_stops_a_job_counts_each_pod_once() {
    (0..60).for_each(any_history);
}
