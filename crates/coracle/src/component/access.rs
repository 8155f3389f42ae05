//! Who may read a program's port: by certificate or token, as the API server decides.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_apiserver::RemoteClient;
use coracle_auth::authz_webhook::{AuthorizationWebhook, WebhookAuthorizer};
use coracle_auth::token_webhook::TokenWebhook;
use coracle_auth::x509::X509Authenticator;
use coracle_auth::{
    Attributes, Authenticator, Authorizer, Credentials, Decision, Remote, SYSTEM_MASTERS, UserInfo,
};
use coracle_meta::Status;
use coracle_stdx::Clock;

use super::ComponentArgs;
use crate::error::Failure;
use crate::remote;

/// Longest wait for a decision.
const WAIT: Duration = Duration::from_secs(10);

/// Who is believed, and who decides.
pub(super) struct Access {
    authenticators: Vec<Arc<dyn Authenticator>>,
    authorizer: Option<WebhookAuthorizer>,
    always_allowed: Vec<String>,
}

/// A server's address for one kind of reviews, and the client for it.
fn reviews(kubeconfig: &Path, path: &str) -> Result<(String, Arc<dyn Remote>), Failure> {
    let (url, config) = remote::config(kubeconfig)?;
    let client = RemoteClient::new(&config).map_err(|why| remote::failed(kubeconfig, &why))?;
    Ok((format!("{}{path}", url.trim_end_matches('/')), Arc::new(client)))
}

impl Access {
    pub(super) fn new(args: &ComponentArgs, clock: &Clock) -> Result<Self, Failure> {
        let mut authenticators: Vec<Arc<dyn Authenticator>> =
            vec![Arc::new(X509Authenticator::new(clock.clone()))];
        if let Some(file) = &args.authentication_kubeconfig {
            let (url, client) = reviews(file, "/apis/authentication.k8s.io/v1/tokenreviews")?;
            let ttl = args.authentication_token_webhook_cache_ttl;
            authenticators.push(Arc::new(TokenWebhook::new(client, &url, "v1", Vec::new(), ttl)));
        }
        let authorizer = args.authorization_kubeconfig.as_deref().map(|file| {
            let (url, client) = reviews(file, "/apis/authorization.k8s.io/v1/subjectaccessreviews")?;
            let config = AuthorizationWebhook {
                name: "delegated".to_owned(),
                url,
                version: "v1".to_owned(),
                allowed_for: args.authorization_webhook_cache_authorized_ttl,
                refused_for: args.authorization_webhook_cache_unauthorized_ttl,
                timeout: WAIT,
                deny_on_failure: false,
                conditions: Vec::new(),
            };
            Ok::<_, Failure>(WebhookAuthorizer::new(config, client))
        });
        Ok(Self {
            authenticators,
            authorizer: authorizer.transpose()?,
            always_allowed: args.authorization_always_allow_paths.clone(),
        })
    }

    fn is_always_allowed(&self, path: &str) -> bool {
        self.always_allowed.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(start) => path.starts_with(start),
            None => path.trim_start_matches('/') == allowed.trim_start_matches('/'),
        })
    }

    /// Whether a request may be answered.
    ///
    /// # Errors
    /// 401 for credentials that nobody believes, 403 for what the user may not read.
    pub(super) async fn check(
        &self,
        method: &str,
        path: &str,
        credentials: &Credentials,
    ) -> Result<(), Status> {
        let user = coracle_auth::authenticate(&self.authenticators, credentials).await;
        let user = user.map_err(|_| Status::unauthorized())?;
        let user = user.unwrap_or_else(UserInfo::anonymous);
        if self.is_always_allowed(path) || user.in_group(SYSTEM_MASTERS) {
            return Ok(());
        }
        let attributes =
            Attributes { user, verb: method.to_lowercase(), path: path.to_owned(), ..Attributes::default() };
        let decision = match &self.authorizer {
            Some(authorizer) => authorizer.ask(&attributes).await,
            None => (Decision::NoOpinion, String::new()),
        };
        match decision {
            (Decision::Allow, _) => Ok(()),
            (_, reason) => Err(attributes.forbidden(&reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(paths: &[&str]) -> Access {
        let always_allowed = paths.iter().map(|path| (*path).to_owned()).collect();
        Access { authenticators: Vec::new(), authorizer: None, always_allowed }
    }

    #[tokio::test]
    async fn health_is_for_all_and_the_rest_for_those_that_may() {
        let access = access(&["/healthz", "/debug/*"]);
        let nobody = Credentials::default();
        assert!(access.check("GET", "/healthz", &nobody).await.is_ok());
        assert!(access.check("GET", "/debug/x/y", &nobody).await.is_ok());
        let refused = access.check("GET", "/metrics", &nobody).await.unwrap_err();
        let why = "forbidden: User \"system:anonymous\" cannot get path \"/metrics\"";
        assert_eq!((refused.code(), refused.message()), (403, why));
        let stranger = Credentials { bearer: Some("x".to_owned()), ..Credentials::default() };
        assert_eq!(access.check("GET", "/healthz", &stranger).await.unwrap_err().code(), 401);
    }
}
