//! Since when what Endpoints and EndpointSlices say has been true: an annotation from which others tell how
//! long a change takes to reach them.

use std::collections::HashMap;
use std::sync::Arc;

use coracle_meta::pod as podutil;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;

use crate::runtime::{ObjectKey, name_of};

const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The changes that were seen of a Service and its pods.
#[derive(Default)]
struct Seen {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

/// Remembers what of each Service was seen.
#[derive(Default)]
pub(super) struct TriggerTimes(Mutex<HashMap<ObjectKey, Seen>>);

impl TriggerTimes {
    /// When the oldest of the changes happened that are new since the last call; `None` if there are none.
    pub(super) fn last_change(
        &self,
        key: &ObjectKey,
        service: &Service,
        pods: &[Arc<Pod>],
    ) -> Option<Timestamp> {
        let mut all = self.0.lock();
        let seen = all.entry(key.clone()).or_default();
        let ready = |pod: &Pod| podutil::condition(pod, "Ready")?.last_transition_time.as_ref().map(|t| t.0);
        let now: HashMap<String, Timestamp> =
            pods.iter().filter_map(|pod| Some((name_of(&**pod).to_owned(), ready(pod)?))).collect();
        let created = service.metadata.creation_timestamp.as_ref().map(|t| t.0);
        let news = now.iter().filter(|(name, at)| seen.pods.get(*name).is_none_or(|before| *at > before));
        let first = news.map(|(_, at)| *at).chain(created.filter(|at| Some(*at) > seen.service)).min();
        *seen = Seen { service: created, pods: now };
        first
    }

    /// A Service that is gone.
    pub(super) fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }
}

/// Notes the time on an object that is written.
pub(super) fn annotate(meta: &mut ObjectMeta, at: Option<Timestamp>) {
    match at {
        Some(at) => {
            meta.annotations.get_or_insert_default().insert(ANNOTATION.to_owned(), at.to_string());
        }
        None => {
            let annotations = meta.annotations.take().map(|mut annotations| {
                annotations.remove(ANNOTATION);
                annotations
            });
            meta.annotations = annotations.filter(|annotations| !annotations.is_empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::testing::set_ready;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn pod(name: &str, since: i64) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        set_ready(&mut pod, true, at(since));
        Arc::new(pod)
    }

    #[test]
    fn the_oldest_news_counts_and_is_no_news_again() {
        let (times, key) = (TriggerTimes::default(), ObjectKey::new("ns", "web"));
        let mut service = Service::default();
        service.metadata.creation_timestamp = Some(Time(at(5)));
        let change = |pods: &[Arc<Pod>]| times.last_change(&key, &service, pods);
        assert_eq!(change(&[pod("a", 9)]), Some(at(5)));
        assert_eq!(change(&[pod("a", 9)]), None);
        assert_eq!(change(&[pod("a", 9), pod("b", 20), pod("c", 17)]), Some(at(17)));
        assert_eq!(change(&[pod("a", 30), pod("b", 20)]), Some(at(30)));
        times.forget(&key);
        assert_eq!(change(&[]), Some(at(5)));
    }

    #[test]
    fn the_annotation_goes_when_there_is_no_news() {
        let mut meta = ObjectMeta::default();
        annotate(&mut meta, Some(at(60)));
        let annotation = meta.annotations.as_ref().and_then(|all| all.get(ANNOTATION));
        assert_eq!(annotation.map(String::as_str), Some("1970-01-01T00:01:00Z"));
        annotate(&mut meta, None);
        assert_eq!(meta.annotations, None);
    }
}
