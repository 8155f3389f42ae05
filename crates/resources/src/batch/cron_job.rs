//! CronJob: makes jobs by a schedule.

use coracle_meta::cron;
use coracle_meta::field::{Error, ErrorKind, ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, JobTemplateSpec};
use serde_json::Value;

use super::job::spec as job_spec;
use crate::check::{non_negative, one_of};
use crate::common::{column, containers_and_images, name_warning, selector_text, text, wide_column};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Strategy, Subresource, Typed, age};
use crate::go_dump;
use crate::podspec::defaults;

const COLUMNS: &[Column] = &[
    NAME,
    column("Schedule", "string", "", "The schedule in Cron format, see https://en.wikipedia.org/wiki/Cron."),
    column(
        "Timezone",
        "string",
        "",
        "The time zone name for the given schedule, see \
         https://en.wikipedia.org/wiki/List_of_tz_database_time_zones. If not specified, this \
         will default to the time zone of the kube-controller-manager process. The set of valid \
         time zone names and the time zone offset is loaded from the system-wide time zone \
         database by the API server during CronJob validation and the controller manager during \
         execution. If no system-wide time zone database can be found a bundled version of the \
         database is used instead. If the time zone name becomes invalid during the lifetime of \
         a CronJob or due to a change in host configuration, the controller will stop creating \
         new new Jobs and will create a system event with the reason UnknownTimeZone. More \
         information can be found in \
         https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/#time-zones",
    ),
    column(
        "Suspend",
        "boolean",
        "",
        "This flag tells the controller to suspend subsequent executions, it does not apply to \
         already started executions.  Defaults to false.",
    ),
    column("Active", "integer", "", "A list of pointers to currently running jobs."),
    column(
        "Last Schedule",
        "string",
        "",
        "Information when was the last time the job was successfully scheduled.",
    ),
    AGE,
    wide_column("Containers", "string", "", "Names of each container in the template."),
    wide_column("Images", "string", "", "Images referenced by each container in the template."),
    wide_column(
        "Selector",
        "string",
        "",
        "A label query over pods that should match the pod count. Normally, the system sets this \
         field for you. More info: \
         https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    recheck_status: Recheck::Never,
    short_names: &["cj"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    has_generation: true,
    ..ResourceDef::new::<CronJob>("cronjob", &Typed::<CronJob, _>::new(CronJobs))
};

struct CronJobs;

/// Longest name: that of the jobs has a suffix.
const MAX_NAME: usize = 52;

impl Strategy<CronJob> for CronJobs {
    fn drop_disabled(&self, obj: &mut CronJob) {
        crate::podspec::defaults::drop_disabled(
            obj.spec.job_template.spec.as_mut().and_then(|s| s.template.spec.as_mut()),
        );
    }

    fn default(&self, obj: &mut CronJob) {
        let spec = &mut obj.spec;
        defaults::string(&mut spec.concurrency_policy, "Allow");
        spec.suspend.get_or_insert(false);
        spec.successful_jobs_history_limit.get_or_insert(3);
        spec.failed_jobs_history_limit.get_or_insert(1);
        spec.job_template.metadata.get_or_insert_default();
        job_spec::defaults(spec.job_template.spec.get_or_insert_default());
        obj.status.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut CronJob) {
        obj.status = Some(CronJobStatus::default());
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut CronJob, old: &CronJob) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut CronJob, old: &CronJob) {
        new.spec.clone_from(&old.spec);
    }

    fn validate(&self, obj: &CronJob, errs: &mut ErrorList) {
        validate_spec(&obj.spec, None, errs);
        let name = text(obj.metadata.name.as_ref());
        if name.len() > MAX_NAME {
            errs.invalid("metadata.name", name, format!("must be no more than {MAX_NAME} characters"));
        }
    }

    fn validate_update(&self, new: &CronJob, old: &CronJob, errs: &mut ErrorList) {
        validate_spec(&new.spec, Some(&old.spec), errs);
    }

    fn warnings(&self, new: &CronJob, old: Option<&CronJob>) -> Vec<String> {
        let mut out = Vec::new();
        if old.is_none() {
            out.extend(name_warning(text(new.metadata.name.as_ref())));
        }
        if let Some(spec) = &new.spec.job_template.spec
            && old.is_none_or(|old| old.spec != new.spec)
        {
            let at = Path::new("spec").child("jobTemplate").child("spec");
            out.extend(job_spec::warnings(spec, &at));
        }
        if old.is_some() && new.spec.schedule.contains("TZ") {
            out.push(
                "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see \
                 https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
                    .to_owned(),
            );
        }
        out
    }

    fn row(&self, obj: &CronJob, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&obj.spec, obj.status.as_ref());
        let job = spec.job_template.spec.as_ref();
        let (containers, images) = containers_and_images(job.map(|s| &s.template));
        let suspended = match spec.suspend {
            None => "<unset>",
            Some(true) => "True",
            Some(false) => "False",
        };
        let last = status.and_then(|s| s.last_schedule_time.as_ref());
        vec![
            obj.metadata.name.clone().into(),
            spec.schedule.clone().into(),
            spec.time_zone.clone().unwrap_or_else(|| "<none>".to_owned()).into(),
            suspended.into(),
            status.and_then(|s| s.active.as_ref()).map_or(0, Vec::len).into(),
            last.map_or("<none>".into(), |time| age(Some(time), now)),
            age(obj.metadata.creation_timestamp.as_ref(), now),
            containers,
            images,
            job.and_then(|s| s.selector.as_ref()).map_or("<none>".to_owned(), selector_text).into(),
        ]
    }
}

fn validate_spec(spec: &CronJobSpec, old: Option<&CronJobSpec>, errs: &mut ErrorList) {
    let path = Path::new("spec");
    if spec.schedule.is_empty() {
        errs.required(path.child("schedule"), "");
    } else {
        let zone_allowed = old.is_some_and(|old| old.schedule.contains("TZ"));
        validate_schedule(spec, zone_allowed, &path.child("schedule"), errs);
    }
    if let Some(seconds) = spec.starting_deadline_seconds {
        non_negative(errs, &path.child("startingDeadlineSeconds"), seconds);
    }
    if let Some(zone) =
        spec.time_zone.as_deref().filter(|_| old.is_none_or(|o| o.time_zone != spec.time_zone))
    {
        validate_zone(zone, &path.child("timeZone"), errs);
    }
    let at = path.child("concurrencyPolicy");
    match text(spec.concurrency_policy.as_ref()) {
        "" => errs.required(at, ""),
        policy => one_of(errs, &at, policy, &["Allow", "Forbid", "Replace"]),
    }
    validate_template(&spec.job_template, &path.child("jobTemplate").child("spec"), errs);
    for (field, limit) in [
        ("successfulJobsHistoryLimit", spec.successful_jobs_history_limit),
        ("failedJobsHistoryLimit", spec.failed_jobs_history_limit),
    ] {
        non_negative(errs, &path.child(field), i64::from(limit.unwrap_or(0)));
    }
}

fn validate_schedule(spec: &CronJobSpec, zone_allowed: bool, path: &Path, errs: &mut ErrorList) {
    let schedule = spec.schedule.as_str();
    if let Err(why) = cron::Schedule::parse(schedule) {
        errs.invalid(path, schedule, why);
    }
    if !schedule.contains("TZ") {
        return;
    }
    if !zone_allowed {
        let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errs.invalid(path, schedule, why);
    } else if spec.time_zone.is_some() {
        errs.invalid(path, schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule");
    }
}

fn validate_zone(zone: &str, path: &Path, errs: &mut ErrorList) {
    if zone.is_empty() {
        return errs.invalid(path, zone, "timeZone must be nil or non-empty string");
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+');
    let bad = |part: &str| {
        matches!(part, "" | "." | "..")
            || part.starts_with('-')
            || part.len() > 14
            || !part.chars().all(legal)
    };
    let unknown = format!("unknown time zone {zone}");
    if zone.split('/').any(bad) {
        return errs.invalid(path, zone, unknown);
    }
    if zone.eq_ignore_ascii_case("local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errs.invalid(path, zone, why);
    }
    if zone.contains("..") {
        errs.invalid(path, zone, "time: invalid location name");
    } else if zone != "Local" && cron::zone(zone).is_none() {
        errs.invalid(path, zone, unknown);
    }
}

fn validate_template(template: &JobTemplateSpec, path: &Path, errs: &mut ErrorList) {
    let Some(spec) = &template.spec else { return };
    job_spec::validate(spec, path, errs);
    if let Some(selector) = &spec.selector {
        let why = "`selector` will be auto-generated";
        go_dump::invalid(errs, path.child("selector"), "metav1.LabelSelector", Some(selector), why);
    }
    if spec.manual_selector == Some(true) {
        errs.push(Error {
            kind: ErrorKind::NotSupported,
            path: path.child("manualSelector").to_string(),
            value: Some("true".to_owned()),
            detail: "supported values: \"nil\", \"false\"".to_owned(),
        });
    }
}
