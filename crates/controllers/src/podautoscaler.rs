//! Horizontal pod autoscaler: keeps the size of everything that has a scale in proportion to what metrics say.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{
    Api, ApiRequest, ApiResponse, Body, Change, Client, EventRecorder, Informer, ResourceId, Verb,
};
use coracle_meta::selector::LabelSelector;
use coracle_meta::{Reason, Status};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::SignedDuration;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, MetricSpec};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::Value;
use tracing::debug;

use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler};
use crate::served::Served;

mod behavior;
mod decide;
mod metrics;
mod proposal;
mod replicas;
#[cfg(test)]
mod tests;

use behavior::History;
use decide::{Look, Plan, Rescale};
use metrics::{Metrics, Subject};
use proposal::{Reading, Size, propose};
use replicas::{Calculator, Tolerances};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "horizontal-pod-autoscaler", workers: 5 };

/// Writes of a scale that conflict are tried this often.
const ATTEMPTS: u32 = 5;

/// Settings of the autoscaler, by upstream's flags `--horizontal-pod-autoscaler-…`.
#[derive(Clone, Copy, Debug)]
pub struct AutoscalerSettings {
    /// Time between two looks at an autoscaler.
    pub sync_period: Duration,
    /// How long the highest recommendation holds back scaling down.
    pub downscale_stabilization: SignedDuration,
    /// How far the usage may be off the target, as a share of it.
    pub tolerance: f64,
    /// After a pod's start, its CPU figures count only while it is ready.
    pub cpu_initialization_period: SignedDuration,
    /// A pod that turns not ready this soon after its start was never ready.
    pub initial_readiness_delay: SignedDuration,
}

impl AutoscalerSettings {
    /// Upstream's values.
    pub const UPSTREAM: Self = Self {
        sync_period: Duration::from_secs(15),
        downscale_stabilization: SignedDuration::from_mins(5),
        tolerance: 0.1,
        cpu_initialization_period: SignedDuration::from_mins(5),
        initial_readiness_delay: SignedDuration::from_secs(30),
    };
}

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (autoscalers, pods) = (cx.informers.get::<HorizontalPodAutoscaler>(), cx.informers.get::<Pod>());
    let client = cx.client(DESCRIPTOR.name);
    let reconciler = Arc::new(Autoscale {
        autoscalers: autoscalers.clone(),
        pods: pods.clone(),
        api: client.api(),
        metrics: Metrics { client: client.clone(), served: cx.served.clone() },
        client,
        served: cx.served.clone(),
        events: cx.recorder(DESCRIPTOR.name),
        clock: cx.clock.clone(),
        settings: cx.config.autoscaler,
        known: Mutex::default(),
    });
    Controller::new(DESCRIPTOR)
        // The status is ours: it wakes nobody.
        .watch(&autoscalers, |change, enqueue| match change {
            Change::Modified { old, new } if old.spec == new.spec => {}
            _ => enqueue(ObjectKey::of(&change.object().metadata)),
        })
        .watch(&pods, |_, _| {})
        .run(reconciler)
        .boxed()
}

/// What is remembered of an autoscaler.
#[derive(Debug, Default)]
struct Known {
    history: History,
    /// The target's pods, as last seen.
    selector: Option<LabelSelector>,
}

struct Autoscale {
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    api: Api<HorizontalPodAutoscaler>,
    metrics: Metrics,
    client: Client,
    served: Served,
    events: EventRecorder,
    clock: Clock,
    settings: AutoscalerSettings,
    known: Mutex<HashMap<ObjectKey, Known>>,
}

/// The target's scale.
#[derive(Clone, Debug)]
struct Scale {
    resource: ResourceId,
    value: Value,
}

impl Scale {
    fn number(&self, pointer: &str) -> i32 {
        self.value.pointer(pointer).and_then(Value::as_i64).and_then(|n| i32::try_from(n).ok()).unwrap_or(0)
    }

    fn size(&self) -> Size {
        Size { spec: self.number("/spec/replicas"), status: self.number("/status/replicas") }
    }

    fn selector(&self) -> &str {
        self.value.pointer("/status/selector").and_then(Value::as_str).unwrap_or("")
    }
}

#[async_trait]
impl Reconciler for Autoscale {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(autoscaler) = self.autoscalers.get(&key.namespace, &key.name) else {
            self.known.lock().remove(key);
            return Ok(Action::AwaitChange);
        };
        let mut look = Look::new(&autoscaler, self.clock.now());
        self.look(key, &autoscaler, &mut look).await;
        for (kind, reason, message) in std::mem::take(&mut look.events) {
            self.events.event(&*autoscaler, kind, reason, message);
        }
        self.write_status(key, &autoscaler, look).await;
        // What failed is looked at again in the same rhythm: figures change no sooner.
        Ok(Action::RequeueAfter(self.settings.sync_period))
    }
}

impl Autoscale {
    async fn look(&self, key: &ObjectKey, autoscaler: &HorizontalPodAutoscaler, look: &mut Look) {
        let scale = match self.scale(key, autoscaler).await {
            Ok(scale) => scale,
            Err(why) => return look.no_scale(&why),
        };
        let now = self.clock.now();
        let current = scale.size().spec;
        self.known.lock().entry(key.clone()).or_default().history.begin(current, now);
        let change = match look.plan(autoscaler, current) {
            Plan::Disabled => {
                look.without_metrics();
                None
            }
            Plan::Bound { to, reason } => {
                look.without_metrics();
                Some(Rescale { from: current, to, reason: reason.to_owned() })
            }
            Plan::Metrics => match self.ask_metrics(key, autoscaler, &scale, look).await {
                Ok(change) => change,
                Err(why) => {
                    debug!(autoscaler = %key, why, "no size computed");
                    return look.give_up(current, &why);
                }
            },
        };
        let Some(change) = change else { return look.stays(current) };
        match self.rescale(key, autoscaler, scale, change.to).await {
            Ok(()) => {
                look.rescaled(&change);
                let mut known = self.known.lock();
                let history = &mut known.entry(key.clone()).or_default().history;
                history.scaled(autoscaler.spec.behavior.as_ref(), change.from, change.to, now);
            }
            Err(status) => look.not_rescaled(&change, status.message()),
        }
    }

    /// The scale of the target.
    async fn scale(&self, key: &ObjectKey, autoscaler: &HorizontalPodAutoscaler) -> Result<Scale, String> {
        let target = &autoscaler.spec.scale_target_ref;
        let api_version = target.api_version.as_deref().unwrap_or("");
        let group = match api_version.split_once('/') {
            Some((_, version)) if version.contains('/') => {
                return Err(format!("unexpected GroupVersion string: {api_version}"));
            }
            Some((group, _)) => group,
            None => "",
        };
        let Some(entry) = self.served.find(group, &target.kind) else {
            return Err(format!("no matches for kind {:?} in group {group:?}", target.kind));
        };
        let value = self.get_scale(key, entry.id, &target.name).await;
        let value = value.map_err(|status| status.message().to_owned())?;
        Ok(Scale { resource: entry.id, value })
    }

    async fn get_scale(&self, key: &ObjectKey, resource: ResourceId, name: &str) -> Result<Value, Status> {
        self.send(key, resource, name, Verb::Get).await
    }

    async fn send(
        &self,
        key: &ObjectKey,
        resource: ResourceId,
        name: &str,
        verb: Verb,
    ) -> Result<Value, Status> {
        let (namespace, name) = (key.namespace.clone(), name.to_owned());
        let request = ApiRequest { resource, namespace, name, subresource: "scale", verb };
        match self.client.request(request).await? {
            ApiResponse::Object(scale) => Ok(scale.to_value()),
            _ => Err(Status::internal("the server did not answer with a Scale")),
        }
    }

    /// Writes the new size; a target that changed meanwhile is read and written again.
    async fn rescale(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        mut scale: Scale,
        to: i32,
    ) -> Result<(), Status> {
        let name = &autoscaler.spec.scale_target_ref.name;
        for attempt in 1.. {
            scale.value["spec"]["replicas"] = to.into();
            let verb = Verb::Update(Body::Json(scale.value.clone()), self.client.write_options());
            match self.send(key, scale.resource, name, verb).await {
                Err(status) if status.reason() == Reason::Conflict && attempt < ATTEMPTS => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    scale.value = self.get_scale(key, scale.resource, name).await?;
                }
                outcome => return outcome.map(drop),
            }
        }
        Ok(())
    }

    /// The size that the metrics ask for, if it is another.
    async fn ask_metrics(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        look: &mut Look,
    ) -> Result<Option<Rescale>, String> {
        let (selector, pods) = self.pods_of(key, scale, look)?;
        let specs = autoscaler.spec.metrics.as_deref().unwrap_or(&[]);
        let mut readings = Vec::with_capacity(specs.len());
        for spec in specs {
            readings.push(self.read(key, spec, &selector).await);
        }
        let calculator = Calculator {
            pods: &pods,
            now: self.clock.now(),
            cpu_initialization: self.settings.cpu_initialization_period,
            readiness_delay: self.settings.initial_readiness_delay,
            tolerances: Tolerances::of(autoscaler.spec.behavior.as_ref(), self.settings.tolerance),
        };
        let size = scale.size();
        let judge = |(spec, reading)| propose(&calculator, &key.namespace, spec, reading, size);
        let outcomes = specs.iter().zip(readings).map(judge).collect();
        let (wish, partly) = look.weigh(outcomes, size.spec)?;
        if let Some(why) = partly {
            debug!(autoscaler = %key, why, "some metrics failed");
        }
        let mut known = self.known.lock();
        let history = &mut known.entry(key.clone()).or_default().history;
        let window = self.settings.downscale_stabilization;
        Ok(look.normalize(autoscaler, &wish, size.spec, history, window))
    }

    /// The target's pods, unless another autoscaler claims them too.
    fn pods_of(
        &self,
        key: &ObjectKey,
        scale: &Scale,
        look: &mut Look,
    ) -> Result<(LabelSelector, Vec<Arc<Pod>>), String> {
        let text = scale.selector();
        if text.is_empty() {
            let message = "the HPA target's scale is missing a selector";
            return Err(look.bad_selector("SelectorRequired", "selector is required", message));
        }
        let selector = LabelSelector::parse(text).map_err(|why| {
            let why =
                format!("couldn't convert selector into a corresponding internal selector object: {why}");
            look.bad_selector("InvalidSelector", &why, &why)
        })?;
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|pod| selector.matches_option(pod.metadata.labels.as_ref()));
        let mut known = self.known.lock();
        known.entry(key.clone()).or_default().selector = Some(selector.clone());
        let claims =
            |other: &LabelSelector| pods.iter().any(|pod| other.matches_option(pod.metadata.labels.as_ref()));
        let mut claimants: Vec<String> = known
            .iter()
            .filter(|(other, _)| other.namespace == key.namespace)
            .filter(|(_, known)| known.selector.as_ref().is_some_and(claims))
            .map(|(other, _)| format!("{{{} {}}}", other.name, other.namespace))
            .collect();
        drop(known);
        if claimants.len() > 1 {
            claimants.sort();
            let list = claimants.join(" ");
            let why = format!("pods by selector {text} are controlled by multiple HPAs: [{list}]");
            return Err(look.bad_selector("AmbiguousSelector", &why, &why));
        }
        Ok((selector, pods))
    }

    /// What a metric says now.
    async fn read(
        &self,
        key: &ObjectKey,
        spec: &MetricSpec,
        pods: &LabelSelector,
    ) -> Result<Reading, String> {
        let of = Subject { namespace: &key.namespace, pods };
        // A metric without a selector is asked for without one.
        let chosen = |selector: Option<&_>| {
            selector.map_or_else(|| Ok(LabelSelector::everything()), LabelSelector::from_api)
        };
        if let Some(source) = &spec.resource {
            return self.metrics.resource(&of, &source.name, "").await.map(Reading::Pods);
        }
        if let Some(source) = &spec.container_resource {
            return self.metrics.resource(&of, &source.name, &source.container).await.map(Reading::Pods);
        }
        if let Some(source) = &spec.pods {
            let selector = chosen(source.metric.selector.as_ref())?;
            return self.metrics.of_pods(&of, &source.metric.name, &selector).await.map(Reading::Pods);
        }
        if let Some(source) = &spec.object {
            let selector = chosen(source.metric.selector.as_ref())?;
            let (object, name) = (&source.described_object, &source.metric.name);
            let value = self.metrics.of_object(of.namespace, object, name, &selector).await?;
            return Ok(Reading::Values(vec![value]));
        }
        match &spec.external {
            Some(source) => {
                let selector = chosen(source.metric.selector.as_ref())?;
                self.metrics.external(of.namespace, &source.metric, &selector).await.map(Reading::Values)
            }
            None => Ok(Reading::Values(Vec::new())),
        }
    }

    async fn write_status(&self, key: &ObjectKey, autoscaler: &HorizontalPodAutoscaler, look: Look) {
        if autoscaler.status.as_ref() == Some(&look.status) {
            return;
        }
        let mut new = autoscaler.clone();
        new.status = Some(look.status);
        if let Err(status) = self.api.update_status(&key.namespace, new).await
            && !matches!(status.reason(), Reason::NotFound)
        {
            let kind = coracle_client::EventType::Warning;
            self.events.event(autoscaler, kind, "FailedUpdateStatus", status.message());
        }
    }
}
