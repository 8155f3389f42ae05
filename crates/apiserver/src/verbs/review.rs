//! Virtual kinds: access reviews and token reviews, answered by the server itself and never stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_auth::{Attributes, Credentials, Decision, UserInfo};
use coracle_meta::field::ErrorList;
use coracle_meta::{Object, Status};
use k8s_openapi::api::authentication::v1 as authn;
use k8s_openapi::api::authorization::v1 as authz;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::create::whole_seconds;
use super::{Caller, Outcome};
use crate::cache::CacheEntry;
use crate::registry::Resource;
use crate::server::Server;

impl Server {
    /// Answers a review, on a `POST` of its kind.
    pub(crate) async fn review(
        &self,
        caller: &Caller,
        resource: &Resource,
        namespace: &str,
        mut obj: Box<dyn Object>,
        warnings: Vec<String>,
    ) -> Result<Outcome, Status> {
        self.fresh().await;
        if let Some(review) = obj.downcast_mut::<authz::SubjectAccessReview>() {
            check_access_spec(resource, &review.spec)?;
            review.status = Some(self.access(subject(&review.spec), &review.spec));
        } else if let Some(review) = obj.downcast_mut::<authz::LocalSubjectAccessReview>() {
            check_access_spec(resource, &review.spec)?;
            check_local(resource, namespace, &review.spec)?;
            review.status = Some(self.access(subject(&review.spec), &review.spec));
        } else if let Some(review) = obj.downcast_mut::<authz::SelfSubjectAccessReview>() {
            let spec = authz::SubjectAccessReviewSpec {
                user: Some(caller.user.name.clone()),
                resource_attributes: review.spec.resource_attributes.clone(),
                non_resource_attributes: review.spec.non_resource_attributes.clone(),
                ..Default::default()
            };
            check_access_spec(resource, &spec)?;
            review.status = Some(self.access((*caller.user).clone(), &spec));
        } else if let Some(review) = obj.downcast_mut::<authz::SelfSubjectRulesReview>() {
            let namespace = review.spec.namespace.take().unwrap_or_default();
            if namespace.is_empty() {
                return Err(Status::bad_request("no namespace on request"));
            }
            review.status = Some(self.rules(&caller.user, &namespace));
            review.metadata.managed_fields = None;
        } else if let Some(review) = obj.downcast_mut::<authn::SelfSubjectReview>() {
            review.metadata.creation_timestamp = Some(Time(whole_seconds(self.clock.now())));
            let user_info = Some(user_info(&caller.user));
            review.status = Some(authn::SelfSubjectReviewStatus { user_info });
        } else if let Some(review) = obj.downcast_mut::<authn::TokenReview>() {
            review.status = Some(self.check_token(&review.spec).await?);
        } else {
            return Err(Status::method_not_supported(resource.def.group, resource.def.plural, "create"));
        }
        let entry = Arc::new(CacheEntry::transient(resource.def, Arc::from(obj)));
        Ok(Outcome { entry, warnings, created: true })
    }

    fn access(
        &self,
        user: UserInfo,
        spec: &authz::SubjectAccessReviewSpec,
    ) -> authz::SubjectAccessReviewStatus {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let attributes = match (&spec.resource_attributes, &spec.non_resource_attributes) {
            (Some(r), _) => Attributes {
                user,
                verb: text(&r.verb),
                is_resource: true,
                group: text(&r.group),
                version: text(&r.version),
                resource: text(&r.resource),
                subresource: text(&r.subresource),
                namespace: text(&r.namespace),
                name: text(&r.name),
                path: String::new(),
                field_selector: r.field_selector.as_ref().map(selector_text).unwrap_or_default(),
            },
            (None, Some(n)) => {
                Attributes { user, verb: text(&n.verb), path: text(&n.path), ..Attributes::default() }
            }
            (None, None) => Attributes { user, ..Attributes::default() },
        };
        let (decision, reason) = self.authorize(&attributes);
        authz::SubjectAccessReviewStatus {
            allowed: decision == Decision::Allow,
            denied: (decision == Decision::Deny).then_some(true),
            reason: (!reason.is_empty()).then_some(reason),
            evaluation_error: None,
        }
    }

    fn rules(&self, user: &UserInfo, namespace: &str) -> authz::SubjectRulesReviewStatus {
        let (mut resource_rules, mut non_resource_rules, mut incomplete) = (Vec::new(), Vec::new(), false);
        for authorizer in &self.authorizers {
            let (resources, paths, partial) = authorizer.rules_for(user, namespace);
            resource_rules.extend(resources.into_iter().map(|r| authz::ResourceRule {
                verbs: r.verbs,
                api_groups: some(r.api_groups),
                resources: some(r.resources),
                resource_names: some(r.resource_names),
            }));
            non_resource_rules.extend(
                paths
                    .into_iter()
                    .map(|r| authz::NonResourceRule { verbs: r.verbs, non_resource_urls: some(r.paths) }),
            );
            incomplete |= partial;
        }
        authz::SubjectRulesReviewStatus {
            resource_rules,
            non_resource_rules,
            incomplete,
            evaluation_error: None,
        }
    }

    async fn check_token(&self, spec: &authn::TokenReviewSpec) -> Result<authn::TokenReviewStatus, Status> {
        let token = spec.token.clone();
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let credentials = Credentials { client_cert: None, bearer: Some(token) };
        let unknown = |error: String| authn::TokenReviewStatus {
            error: Some(error),
            user: Some(authn::UserInfo::default()),
            ..Default::default()
        };
        for authenticator in &self.authenticators {
            match authenticator.authenticate(&credentials).await {
                Ok(Some(user)) => {
                    return Ok(authn::TokenReviewStatus {
                        authenticated: Some(true),
                        audiences: spec.audiences.clone().or_else(|| some(vec![self.default_audience()])),
                        user: Some(user_info(&user)),
                        error: None,
                    });
                }
                Ok(None) => {}
                Err(_) => break,
            }
        }
        Ok(unknown("invalid bearer token".into()))
    }
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn user_info(user: &UserInfo) -> authn::UserInfo {
    let extra: BTreeMap<String, Vec<String>> = user.extra.clone();
    authn::UserInfo {
        username: Some(user.name.clone()),
        uid: (!user.uid.is_empty()).then(|| user.uid.clone()),
        groups: some(user.groups.clone()),
        extra: (!extra.is_empty()).then_some(extra),
    }
}

fn subject(spec: &authz::SubjectAccessReviewSpec) -> UserInfo {
    UserInfo {
        name: spec.user.clone().unwrap_or_default(),
        uid: spec.uid.clone().unwrap_or_default(),
        groups: spec.groups.clone().unwrap_or_default(),
        extra: spec.extra.clone().unwrap_or_default(),
    }
}

/// A field selector of a review as selector text.
fn selector_text(selector: &authz::FieldSelectorAttributes) -> String {
    if let Some(raw) = selector.raw_selector.as_ref().filter(|r| !r.is_empty()) {
        return raw.clone();
    }
    let one = |r: &k8s_openapi::apimachinery::pkg::apis::meta::v1::FieldSelectorRequirement| {
        let value = r.values.as_ref().and_then(|v| v.first()).map_or("", String::as_str);
        let sign = if r.operator == "NotIn" { "!=" } else { "=" };
        format!("{}{sign}{value}", r.key)
    };
    selector.requirements.iter().flatten().map(one).collect::<Vec<_>>().join(",")
}

fn check_access_spec(resource: &Resource, spec: &authz::SubjectAccessReviewSpec) -> Result<(), Status> {
    let mut errs = ErrorList::new();
    match (&spec.resource_attributes, &spec.non_resource_attributes) {
        (Some(_), Some(_)) => {
            let why = "cannot be specified in combination with resourceAttributes";
            errs.invalid("spec.nonResourceAttributes", serde_json::Value::Null, why);
        }
        (None, None) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errs.invalid("spec.resourceAttributes", serde_json::Value::Null, why);
        }
        _ => {}
    }
    if spec.user.as_ref().is_none_or(String::is_empty) && spec.groups.as_ref().is_none_or(Vec::is_empty) {
        errs.invalid("spec.user", "", "at least one of user or group must be specified");
    }
    if errs.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(resource.def.group, resource.def.kind, "", &errs))
}

fn check_local(
    resource: &Resource,
    namespace: &str,
    spec: &authz::SubjectAccessReviewSpec,
) -> Result<(), Status> {
    let own = spec.resource_attributes.as_ref().and_then(|r| r.namespace.as_deref()).unwrap_or("");
    if own == namespace {
        return Ok(());
    }
    let mut errs = ErrorList::new();
    errs.invalid("spec.resourceAttributes.namespace", own, "must match metadata.namespace");
    Err(Status::invalid(resource.def.group, resource.def.kind, "", &errs))
}
