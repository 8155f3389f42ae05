//! Who a remote transport says it is; tokens of service accounts, asked for and renewed in time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use coracle_meta::{Reason, Status};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::api::Client;
use crate::transport::ApiResponse;

/// How long a token is asked to live. It is renewed after four fifths of that.
const LIFE: Duration = Duration::from_secs(3600);

/// How requests show who they come from, beside the connection's certificate.
#[derive(Clone, Debug)]
pub enum Credential {
    /// Only by the connection's certificate.
    Connection,
    /// A token that stays.
    Token(String),
    /// A service account's token.
    Account(Arc<AccountToken>),
}

impl Credential {
    /// The bearer token to show, if one is to be shown.
    ///
    /// # Errors
    /// What the server said when it was asked for one.
    pub(super) async fn bearer(&self) -> Result<Option<String>, Status> {
        match self {
            Self::Connection => Ok(None),
            Self::Token(token) => Ok(Some(token.clone())),
            Self::Account(account) => account.token().await.map(Some),
        }
    }

    /// Tells that the server did not believe the token: another one is asked for.
    pub(super) async fn refused(&self) {
        if let Self::Account(account) = self {
            *account.kept.lock().await = None;
        }
    }
}

/// A service account's token, as upstream's `--use-service-account-credentials` has one for each controller.
pub struct AccountToken {
    client: Client,
    namespace: String,
    name: String,
    /// The token, and when it is renewed.
    kept: Mutex<Option<(String, Instant)>>,
}

impl fmt::Debug for AccountToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccountToken({}/{})", self.namespace, self.name)
    }
}

impl AccountToken {
    /// The token of an account, asked for through `client` on first use. An account that is missing is made, and its
    /// namespace.
    pub fn new(client: Client, namespace: &str, name: &str) -> Arc<Self> {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Arc::new(Self { client, namespace, name, kept: Mutex::default() })
    }

    async fn token(&self) -> Result<String, Status> {
        let mut kept = self.kept.lock().await;
        if let Some((token, renewed)) = &*kept
            && Instant::now() < *renewed
        {
            return Ok(token.clone());
        }
        let token = match self.ask().await {
            Err(status) if status.reason() == Reason::NotFound => {
                self.create().await?;
                self.ask().await?
            }
            asked => asked?,
        };
        *kept = Some((token.clone(), Instant::now() + LIFE.mul_f64(0.8)));
        Ok(token)
    }

    async fn ask(&self) -> Result<String, Status> {
        let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "audiences": [], "expirationSeconds": LIFE.as_secs() } });
        let accounts = self.client.api::<ServiceAccount>();
        let answer = accounts.create_subresource(&self.namespace, &self.name, "token", body).await?;
        let token = match &answer {
            ApiResponse::Object(request) => {
                request.to_value().pointer("/status/token").and_then(|t| t.as_str()).map(str::to_owned)
            }
            ApiResponse::List { .. } | ApiResponse::Status(_) => None,
        };
        token.ok_or_else(|| Status::internal("the server's answer holds no token"))
    }

    async fn create(&self) -> Result<(), Status> {
        let meta = |name: &str| ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let account = || ServiceAccount { metadata: meta(&self.name), ..ServiceAccount::default() };
        let accounts = self.client.api::<ServiceAccount>();
        let made = match accounts.create(&self.namespace, account()).await {
            Err(status) if status.reason() == Reason::NotFound => {
                let namespace = Namespace { metadata: meta(&self.namespace), ..Namespace::default() };
                exists(self.client.api::<Namespace>().create("", namespace).await)?;
                accounts.create(&self.namespace, account()).await
            }
            made => made,
        };
        exists(made)
    }
}

/// Takes `409 AlreadyExists` for success.
fn exists<T>(made: Result<T, Status>) -> Result<(), Status> {
    match made {
        Err(status) if status.reason() != Reason::AlreadyExists => Err(status),
        _ => Ok(()),
    }
}
