//! Virtual kinds: access reviews and token reviews, answered by the server itself and never stored.

mod checks;

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_auth::{Attributes, Decision, UserInfo};
use coracle_meta::field::ErrorList;
use coracle_meta::{Object, Status};
use k8s_openapi::api::authentication::v1 as authn;
use k8s_openapi::api::authorization::v1 as authz;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

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
        self.fresh().await?;
        if let Some(review) = obj.downcast_mut::<authz::SubjectAccessReview>() {
            check(&review.metadata, &review.spec, Form::Cluster)?;
            review.status = Some(self.access(subject(&review.spec), &review.spec).await);
        } else if let Some(review) = obj.downcast_mut::<authz::LocalSubjectAccessReview>() {
            check(&review.metadata, &review.spec, Form::Local)?;
            if review.metadata.namespace.as_deref() != Some(namespace) {
                let why = format!("spec.resourceAttributes.namespace must match namespace: {namespace}");
                return Err(Status::bad_request(why));
            }
            review.status = Some(self.access(subject(&review.spec), &review.spec).await);
        } else if let Some(review) = obj.downcast_mut::<authz::SelfSubjectAccessReview>() {
            let spec = authz::SubjectAccessReviewSpec {
                resource_attributes: review.spec.resource_attributes.clone(),
                non_resource_attributes: review.spec.non_resource_attributes.clone(),
                ..Default::default()
            };
            check(&review.metadata, &spec, Form::Own)?;
            review.status = Some(self.access((*caller.user).clone(), &spec).await);
        } else if let Some(review) = obj.downcast_mut::<authz::SelfSubjectRulesReview>() {
            let namespace = review.spec.namespace.take().unwrap_or_default();
            if namespace.is_empty() {
                return Err(Status::bad_request("no namespace on request"));
            }
            review.status = Some(self.rules(&caller.user, &namespace));
            review.metadata.managed_fields = None;
        } else if let Some(review) = obj.downcast_mut::<authn::SelfSubjectReview>() {
            // Nothing that was sent is answered, but the time of the answer.
            review.metadata = ObjectMeta {
                creation_timestamp: Some(Time(whole_seconds(self.clock.now()))),
                ..ObjectMeta::default()
            };
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

    async fn access(
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
                label_selector: r.label_selector.as_ref().map(label_text).unwrap_or_default(),
            },
            (None, Some(n)) => {
                Attributes { user, verb: text(&n.verb), path: text(&n.path), ..Attributes::default() }
            }
            (None, None) => Attributes { user, ..Attributes::default() },
        };
        let (decision, reason) = self.decide(&attributes).await;
        authz::SubjectAccessReviewStatus {
            allowed: decision == Decision::Allow,
            denied: (decision == Decision::Deny).then_some(true),
            reason: (!reason.is_empty()).then_some(reason),
            evaluation_error: spec.resource_attributes.as_ref().and_then(checks::selector_faults),
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
        let unknown = |error: String| authn::TokenReviewStatus {
            error: Some(error),
            user: Some(authn::UserInfo::default()),
            ..Default::default()
        };
        let own = [self.default_audience()];
        let wanted = spec.audiences.as_deref().unwrap_or_default();
        let wanted = if wanted.is_empty() { &own[..] } else { wanted };
        for authenticator in &self.authenticators {
            match authenticator.review(&token, wanted, &own).await {
                Ok(Some((user, served))) => {
                    return Ok(authn::TokenReviewStatus {
                        authenticated: Some(true),
                        audiences: some(served),
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

/// A label selector of a review as selector text.
fn label_text(selector: &authz::LabelSelectorAttributes) -> String {
    if let Some(raw) = selector.raw_selector.as_ref().filter(|r| !r.is_empty()) {
        return raw.clone();
    }
    let one = |r: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement| {
        let values = r.values.as_deref().unwrap_or_default().join(",");
        match r.operator.as_str() {
            "In" => format!("{} in ({values})", r.key),
            "NotIn" => format!("{} notin ({values})", r.key),
            "DoesNotExist" => format!("!{}", r.key),
            _ => r.key.clone(),
        }
    };
    selector.requirements.iter().flatten().map(one).collect::<Vec<_>>().join(",")
}

/// Whose access a review is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Of anybody, anywhere.
    Cluster,
    /// Of anybody, in a namespace.
    Local,
    /// Of the caller.
    Own,
}

fn check(meta: &ObjectMeta, spec: &authz::SubjectAccessReviewSpec, form: Form) -> Result<(), Status> {
    let mut errs = ErrorList::new();
    let asked = checks::Asked {
        meta,
        resource: spec.resource_attributes.as_ref(),
        path: spec.non_resource_attributes.as_ref(),
    };
    let grouped = spec.groups.as_ref().is_some_and(|groups| !groups.is_empty());
    let subject = (form != Form::Own).then(|| (spec.user.as_deref().unwrap_or(""), grouped));
    checks::asked(&asked, subject, &mut errs);
    checks::metadata(meta, form == Form::Local, &mut errs);
    if form == Form::Local {
        checks::local(&asked, &mut errs);
    }
    checks::refuse(&errs)
}
