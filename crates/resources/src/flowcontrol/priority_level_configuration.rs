//! PriorityLevelConfiguration: how many requests of a priority level run and wait.

use coracle_meta::field::{Error, ErrorKind, ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::flowcontrol::v1::{
    ExemptPriorityLevelConfiguration, LimitResponse, LimitedPriorityLevelConfiguration,
    PriorityLevelConfiguration, PriorityLevelConfigurationSpec, PriorityLevelConfigurationStatus,
    QueuingConfiguration,
};
use serde_json::{Value, json};

use super::condition_types;
use crate::check::go_struct;
use crate::common::{column, keep_metadata, text};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Scope, Strategy, Subresource, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Type",
        "string",
        "",
        "`type` indicates whether this priority level is subject to limitation on request execution.  \
         A value of `\"Exempt\"` means that requests of this priority level are not subject to a \
         limit (and thus are never queued) and do not detract from the capacity made available to \
         other priority levels.  A value of `\"Limited\"` means that (a) requests of this priority \
         level _are_ subject to limits and (b) some of the server's limited capacity is made \
         available exclusively to this priority level. Required.",
    ),
    column(
        "NominalConcurrencyShares",
        "string",
        "",
        "`nominalConcurrencyShares` (NCS) contributes to the computation of the \
         NominalConcurrencyLimit (NominalCL) of this level. This is the number of execution seats \
         available at this priority level. This is used both for requests dispatched from this \
         priority level as well as requests dispatched from other priority levels borrowing seats \
         from this level. The server's concurrency limit (ServerCL) is divided among the Limited \
         priority levels in proportion to their NCS values:\n\nNominalCL(i)  = ceil( ServerCL * \
         NCS(i) / sum_ncs ) sum_ncs = sum[priority level k] NCS(k)\n\nBigger numbers mean a larger \
         nominal concurrency limit, at the expense of every other priority level.\n\nIf not \
         specified, this field defaults to a value of 30.\n\nSetting this field to zero supports the \
         construction of a \"jail\" for this priority level that is used to hold some request(s)",
    ),
    column(
        "Queues",
        "string",
        "",
        "`queues` is the number of queues for this priority level. The queues exist independently at \
         each apiserver. The value must be positive.  Setting it to 1 effectively precludes \
         shufflesharding and thus makes the distinguisher method of associated flow schemas \
         irrelevant.  This field has a default value of 64.",
    ),
    column(
        "HandSize",
        "string",
        "",
        "`handSize` is a small positive number that configures the shuffle sharding of requests into \
         queues.  When enqueuing a request at this priority level the request's flow identifier (a \
         string pair) is hashed and the hash value is used to shuffle the list of queues and deal a \
         hand of the size specified here.  The request is put into one of the shortest queues in that \
         hand. `handSize` must be no larger than `queues`, and should be significantly smaller (so \
         that a few heavy flows do not saturate most of the queues).  See the user-facing \
         documentation for more extensive guidance on setting this field.  This field has a default \
         value of 8.",
    ),
    column(
        "QueueLengthLimit",
        "string",
        "",
        "`queueLengthLimit` is the maximum number of requests allowed to be waiting in a given queue \
         of this priority level at a time; excess requests are rejected.  This value must be \
         positive.  If not specified, it will be defaulted to 50.",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::New,
    scope: Scope::Cluster,
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    has_generation: true,
    ..ResourceDef::new::<PriorityLevelConfiguration>(
        "prioritylevelconfiguration",
        &Typed::<PriorityLevelConfiguration, _>::new(PriorityLevels),
    )
};

struct PriorityLevels;

const EXEMPT: &str = "exempt";
/// Levels whose spec is fixed; of the exempt one all but its `exempt`.
const MANDATORY: &[&str] = &[EXEMPT, "catch-all"];
const OLD_ANNOTATION: &str = "flowcontrol.k8s.io/v1beta3-preserve-zero-concurrency-shares";
const MAX_QUEUES: i32 = 10_000_000;
/// Bits of the hash that deals hands of queues.
const MAX_HASH_BITS: i32 = 60;

impl Strategy<PriorityLevelConfiguration> for PriorityLevels {
    fn default(&self, obj: &mut PriorityLevelConfiguration) {
        let spec = obj.spec.get_or_insert_default();
        if let Some(exempt) = &mut spec.exempt {
            exempt.nominal_concurrency_shares.get_or_insert(0);
            exempt.lendable_percent.get_or_insert(0);
        }
        if let Some(limited) = &mut spec.limited {
            limited.nominal_concurrency_shares.get_or_insert(30);
            limited.lendable_percent.get_or_insert(0);
            if let Some(queuing) = &mut limited.limit_response.get_or_insert_default().queuing {
                let number = |field: &mut Option<i32>, value| {
                    if field.unwrap_or(0) == 0 {
                        *field = Some(value);
                    }
                };
                number(&mut queuing.hand_size, 8);
                number(&mut queuing.queues, 64);
                number(&mut queuing.queue_length_limit, 50);
            }
        }
        obj.status.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut PriorityLevelConfiguration) {
        obj.status = Some(PriorityLevelConfigurationStatus::default());
    }

    fn prepare_update(
        &self,
        _: Context<'_>,
        new: &mut PriorityLevelConfiguration,
        old: &PriorityLevelConfiguration,
    ) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(
        &self,
        _: Context<'_>,
        new: &mut PriorityLevelConfiguration,
        old: &PriorityLevelConfiguration,
    ) {
        new.spec.clone_from(&old.spec);
        keep_metadata(&mut new.metadata, &old.metadata);
        new.metadata.generate_name.clone_from(&old.metadata.generate_name);
    }

    fn validate(&self, obj: &PriorityLevelConfiguration, errs: &mut ErrorList) {
        let name = text(obj.metadata.name.as_ref());
        if obj.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(OLD_ANNOTATION)) {
            let path = Path::new("metadata").child("annotations");
            errs.forbidden(path, format!("annotation '{OLD_ANNOTATION}' is forbidden"));
        }
        let Some(spec) = &obj.spec else { return };
        check(name, spec, errs);
        if MANDATORY.contains(&name) {
            mandatory(name, spec, errs);
        }
        self.validate_status_update(obj, obj, errs);
    }

    fn validate_status_update(
        &self,
        new: &PriorityLevelConfiguration,
        _: &PriorityLevelConfiguration,
        errs: &mut ErrorList,
    ) {
        let conditions = new.status.iter().flat_map(|s| s.conditions.iter().flatten());
        condition_types(conditions.map(|c| text(c.type_.as_ref())), errs);
    }

    fn row(&self, obj: &PriorityLevelConfiguration, now: Timestamp) -> Vec<Value> {
        let limited = obj.spec.as_ref().and_then(|s| s.limited.as_ref());
        let queuing = limited.and_then(|l| l.limit_response.as_ref()).and_then(|r| r.queuing.as_ref());
        let cell = |of: Option<Option<i32>>| of.map_or("<none>".into(), |n| n.unwrap_or(0).into());
        vec![
            obj.metadata.name.clone().into(),
            obj.spec.as_ref().map_or("", |s| s.type_.as_str()).into(),
            cell(limited.map(|l| l.nominal_concurrency_shares)),
            cell(queuing.map(|q| q.queues)),
            cell(queuing.map(|q| q.hand_size)),
            cell(queuing.map(|q| q.queue_length_limit)),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

/// A mandatory level must be as it is made.
fn mandatory(name: &str, spec: &PriorityLevelConfigurationSpec, errs: &mut ErrorList) {
    let level = |o: &Value| o["kind"] == "PriorityLevelConfiguration" && o["metadata"]["name"] == name;
    let found = super::bootstrap().into_iter().find(level).map(|mut o| o["spec"].take());
    let fixed: Option<PriorityLevelConfigurationSpec> =
        found.and_then(|spec| serde_json::from_value(spec).ok());
    let exempt = name == EXEMPT;
    let part = |spec: &PriorityLevelConfigurationSpec| {
        shown(&PriorityLevelConfigurationSpec {
            exempt: spec.exempt.clone().filter(|_| !exempt),
            ..spec.clone()
        })
    };
    if fixed.is_some_and(|fixed| part(&fixed) == part(spec)) {
        return;
    }
    let but = if exempt { " except the 'spec.exempt' field" } else { "" };
    errs.push(Error {
        kind: ErrorKind::Invalid,
        path: "spec".to_owned(),
        value: Some(shown(spec)),
        detail: format!("spec of '{name}'{but} must equal the fixed value"),
    });
}

fn check(name: &str, spec: &PriorityLevelConfigurationSpec, errs: &mut ErrorList) {
    let path = Path::new("spec");
    if (name == EXEMPT) != (spec.type_ == "Exempt") {
        let why = "must be 'Exempt' if and only if `name` is 'exempt'";
        errs.invalid(path.child("type"), spec.type_.as_str(), why);
    }
    match spec.type_.as_str() {
        "Exempt" => {
            if spec.limited.is_some() {
                errs.forbidden(path.child("limited"), "must be nil if the type is not Limited");
            }
            if let Some(of) = &spec.exempt {
                exempt(of, &path.child("exempt"), errs);
            }
        }
        "Limited" => {
            if spec.exempt.is_some() {
                errs.forbidden(path.child("exempt"), "must be nil if the type is Limited");
            }
            match &spec.limited {
                Some(of) => limited(of, &path.child("limited"), errs),
                None => errs.required(path.child("limited"), "must not be empty when type is Limited"),
            }
        }
        other => errs.not_supported(path.child("type"), other, &["Exempt", "Limited"]),
    }
}

/// Shares and the percentage that others may borrow.
fn shares(shares: Option<i32>, lendable: Option<i32>, path: &Path, errs: &mut ErrorList) {
    if let Some(shares) = shares.filter(|shares| *shares < 0) {
        errs.invalid(path.child("nominalConcurrencyShares"), shares, "must be a non-negative integer");
    }
    if let Some(percent) = lendable.filter(|percent| !(0..=100).contains(percent)) {
        errs.invalid(path.child("lendablePercent"), percent, "must be between 0 and 100, inclusive");
    }
}

fn exempt(of: &ExemptPriorityLevelConfiguration, path: &Path, errs: &mut ErrorList) {
    shares(of.nominal_concurrency_shares, of.lendable_percent, path, errs);
}

fn limited(of: &LimitedPriorityLevelConfiguration, path: &Path, errs: &mut ErrorList) {
    shares(of.nominal_concurrency_shares, of.lendable_percent, path, errs);
    let empty = LimitResponse::default();
    let response = of.limit_response.as_ref().unwrap_or(&empty);
    let at = path.child("limitResponse");
    match (response.type_.as_str(), &response.queuing) {
        ("Reject", None) => {}
        ("Reject", Some(_)) => {
            errs.forbidden(at.child("queuing"), "must be nil if limited.limitResponse.type is not Limited");
        }
        ("Queue", None) => {
            let why = "must not be empty if limited.limitResponse.type is Limited";
            errs.required(at.child("queuing"), why);
        }
        ("Queue", Some(of)) => queuing(of, &at.child("queuing"), errs),
        (other, _) => errs.not_supported(at.child("type"), other, &["Queue", "Reject"]),
    }
    if let Some(percent) = of.borrowing_limit_percent.filter(|percent| *percent < 0) {
        let why = "if specified, must be a non-negative integer";
        errs.invalid(path.child("borrowingLimitPercent"), percent, why);
    }
}

fn queuing(of: &QueuingConfiguration, path: &Path, errs: &mut ErrorList) {
    let length = of.queue_length_limit.unwrap_or(0);
    if length <= 0 {
        errs.invalid(path.child("queueLengthLimit"), length, "must be positive");
    }
    let (queues, at) = (of.queues.unwrap_or(0), path.child("queues"));
    if queues <= 0 {
        errs.invalid(at, queues, "must be positive");
    } else if queues > MAX_QUEUES {
        errs.invalid(at, queues, format!("must not be greater than {MAX_QUEUES}"));
    }
    let (hand, at) = (of.hand_size.unwrap_or(0), path.child("handSize"));
    if hand <= 0 {
        errs.invalid(at, hand, "must be positive");
    } else if hand > queues {
        errs.invalid(at, hand, format!("should not be greater than queues ({queues})"));
    } else if entropy_bits(queues, hand) > f64::from(MAX_HASH_BITS) {
        let why = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than \
             {MAX_HASH_BITS}"
        );
        errs.invalid(at, hand, why);
    }
}

/// Bits that dealing a hand out of a deck takes, in whole.
fn entropy_bits(deck: i32, hand: i32) -> f64 {
    (f64::from(deck).log2() * f64::from(hand)).ceil()
}

/// The spec as Go prints it.
fn shown(spec: &PriorityLevelConfigurationSpec) -> String {
    let limited = spec.limited.as_ref().map_or("null".to_owned(), |l| {
        let response = l.limit_response.clone().unwrap_or_default();
        let queuing = response.queuing.map_or("null".to_owned(), |q| {
            go_struct(&[
                ("Queues", json!(q.queues.unwrap_or(0))),
                ("HandSize", json!(q.hand_size.unwrap_or(0))),
                ("QueueLengthLimit", json!(q.queue_length_limit.unwrap_or(0))),
            ])
        });
        format!(
            "{{\"NominalConcurrencyShares\":{},\"LimitResponse\":{{\"Type\":{},\"Queuing\":{queuing}}},\
             \"LendablePercent\":{},\"BorrowingLimitPercent\":{}}}",
            l.nominal_concurrency_shares.unwrap_or(0),
            json!(response.type_),
            json!(l.lendable_percent),
            json!(l.borrowing_limit_percent),
        )
    });
    let exempt = spec.exempt.as_ref().map_or("null".to_owned(), |e| {
        go_struct(&[
            ("NominalConcurrencyShares", json!(e.nominal_concurrency_shares)),
            ("LendablePercent", json!(e.lendable_percent)),
        ])
    });
    format!("{{\"Type\":{},\"Limited\":{limited},\"Exempt\":{exempt}}}", json!(spec.type_))
}
