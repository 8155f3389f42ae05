//! From the stored FlowSchemas and PriorityLevelConfigurations to what is in force.

use std::sync::Arc;

use http::HeaderValue;
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use serde_json::Value;

use super::level::{Level, LevelView};
use super::queues::Excess;
use super::shares::{self, Borrower, Shares};
use super::{Configured, Distinguisher, FlowControl, Schema, deal};

const EXEMPT: &str = "exempt";
pub(super) const CATCH_ALL: &str = "catch-all";
/// Most seats of a request in a level without queues.
const WIDEST: u64 = 10;

/// The objects.
#[derive(Clone, Default)]
pub(crate) struct Given {
    /// FlowSchemas.
    pub(crate) schemas: Vec<FlowSchema>,
    /// Priority levels.
    pub(crate) levels: Vec<PriorityLevelConfiguration>,
}

impl Given {
    /// Adds those of the mandatory objects that are missing: everybody always has a level.
    fn complete(&mut self) {
        for value in coracle_resources::bootstrap() {
            let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("");
            if name != EXEMPT && name != CATCH_ALL {
                continue;
            }
            let kind = value["kind"].as_str().unwrap_or("").to_owned();
            if kind == "FlowSchema" && !self.schemas.iter().any(|s| s.metadata.name.as_deref() == Some(name))
            {
                self.schemas.extend(serde_json::from_value::<FlowSchema>(value));
            } else if kind == "PriorityLevelConfiguration"
                && !self.levels.iter().any(|l| l.metadata.name.as_deref() == Some(name))
            {
                self.levels.extend(serde_json::from_value::<PriorityLevelConfiguration>(value));
            }
        }
    }
}

fn number(value: Option<i32>) -> usize {
    value.and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
}

/// What a level's object says; none when it contradicts itself.
fn read(object: &PriorityLevelConfiguration) -> Option<(Excess, Shares)> {
    let spec = object.spec.as_ref()?;
    let exempt = spec.type_ == "Exempt";
    if exempt != (object.metadata.name.as_deref() == Some(EXEMPT)) || exempt == spec.limited.is_some() {
        return None;
    }
    let Some(limited) = &spec.limited else {
        let exempt = spec.exempt.as_ref()?;
        let nominal = exempt.nominal_concurrency_shares.unwrap_or(0);
        let shares = Shares { nominal, lendable: exempt.lendable_percent.unwrap_or(0), borrowing: None };
        return Some((Excess::Exempt, shares));
    };
    let response = limited.limit_response.as_ref()?;
    let excess = match &response.queuing {
        Some(queuing) if response.type_ == "Queue" => {
            let (queues, hand) = (number(queuing.queues), number(queuing.hand_size));
            let length = number(queuing.queue_length_limit);
            if queues == 0 || hand == 0 || hand > queues || hand > deal::MOST {
                return None;
            }
            Excess::Queue { queues, hand, length }
        }
        None if response.type_ == "Reject" => Excess::Refuse,
        _ => return None,
    };
    let shares = Shares {
        nominal: limited.nominal_concurrency_shares.unwrap_or(30),
        lendable: limited.lendable_percent.unwrap_or(0),
        borrowing: limited.borrowing_limit_percent,
    };
    Some((excess, shares))
}

fn uid(uid: Option<&str>) -> HeaderValue {
    HeaderValue::from_str(uid.unwrap_or("")).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn distinguisher(schema: &FlowSchema) -> Distinguisher {
    let method = schema.spec.as_ref().and_then(|spec| spec.distinguisher_method.as_ref());
    match method.map(|m| m.type_.as_str()) {
        Some("ByUser") => Distinguisher::User,
        Some("ByNamespace") => Distinguisher::Namespace,
        _ => Distinguisher::Nothing,
    }
}

impl FlowControl {
    /// Puts these objects in force. Requests that wait or run stay where they are; a level that is not configured any
    /// more goes when its requests have gone.
    pub(crate) fn configure(&self, mut given: Given) {
        let mut kept = self.given.lock();
        *kept = given.clone();
        given.complete();
        let before = self.configured.read().clone();
        let mut levels = self.levels(&given.levels, &before.levels);
        let sum = levels.iter().map(|view| i64::from(view.shares.nominal)).sum();
        for view in &mut levels {
            view.seats = shares::seats(self.total, view.shares, sum);
            view.widest = match view.excess {
                Excess::Queue { hand, .. } => view.seats.widest(hand as u64),
                _ => WIDEST,
            };
        }
        for view in &levels {
            let new = !before.levels.iter().any(|old| Arc::ptr_eq(&old.level, &view.level));
            let limit = if new { view.seats.first() } else { view.level.queues.lock().limit() };
            view.level.change(|queues, now| ((), queues.configure(view.excess, limit, now)));
        }
        let configured = Configured { schemas: schemas(given.schemas, &levels), levels };
        configured.divide(1);
        *self.configured.write() = Arc::new(configured);
    }

    fn levels(&self, objects: &[PriorityLevelConfiguration], before: &[LevelView]) -> Vec<LevelView> {
        let mut levels: Vec<LevelView> = Vec::with_capacity(objects.len());
        for object in objects {
            let Some(name) = object.metadata.name.as_deref() else { continue };
            let Some((excess, shares)) = read(object) else {
                tracing::warn!(name, "PriorityLevelConfiguration contradicts itself and is left aside");
                continue;
            };
            let old = before.iter().find(|view| view.level.name == name);
            let level = old
                .map_or_else(|| Level::new(name, self.epoch, excess, self.abreast), |old| old.level.clone());
            let (uid, seats) = (uid(object.metadata.uid.as_deref()), shares::Seats::default());
            levels.push(LevelView { level, uid, excess, shares, seats, widest: 1, leaving: false });
        }
        for old in before {
            let gone = !levels.iter().any(|view| view.level.name == old.level.name);
            if gone && !old.level.is_idle() {
                levels.push(LevelView { leaving: true, ..old.clone() });
            }
        }
        levels
    }
}

/// The schemas whose level exists, in order of precedence.
fn schemas(mut objects: Vec<FlowSchema>, levels: &[LevelView]) -> Vec<Schema> {
    objects.sort_by_cached_key(|object| {
        let precedence = object.spec.as_ref().and_then(|spec| spec.matching_precedence).unwrap_or(1000);
        (precedence, object.metadata.name.clone())
    });
    let schema = |object: FlowSchema| {
        let by = distinguisher(&object);
        let (name, spec) = (object.metadata.name?, object.spec?);
        let to = &spec.priority_level_configuration.name;
        let level = levels.iter().position(|view| !view.leaving && view.level.name == *to)?;
        let counted = levels[level].level.counted(&name);
        Some(Schema { uid: uid(object.metadata.uid.as_deref()), by, level, counted, name, spec })
    };
    objects.into_iter().filter_map(schema).collect()
}

impl Configured {
    /// Divides the seats by what was demanded in the last `periods`.
    pub(super) fn divide(&self, periods: i32) {
        let borrower = |view: &LevelView| {
            let demand = view.level.queues.lock().take_demand(view.level.now());
            let mut history = view.level.history.lock();
            history.update(demand, periods);
            Borrower { exempt: view.excess == Excess::Exempt, seats: view.seats, demand: *history }
        };
        let borrowers: Vec<Borrower> = self.levels.iter().map(borrower).collect();
        let (seats, _) = shares::divide(&borrowers);
        for (view, seats) in self.levels.iter().zip(seats) {
            view.level.change(|queues, now| ((), queues.resize(seats, now)));
        }
    }
}
