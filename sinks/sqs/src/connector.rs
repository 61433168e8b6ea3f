//! The client: credentials, endpoint, HTTP over one TLS stack, and none of the library's own retries.

use std::{fmt, time::Duration};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, retry::RetryConfig, sts::AssumeRoleProvider, timeout::TimeoutConfig,
};
use aws_credential_types::provider::{SharedCredentialsProvider, error::CredentialsError};
use aws_sdk_sqs::{
    Client,
    config::{Credentials, StalledStreamProtectionConfig},
    error::{ProvideErrorMetadata, SdkError},
};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
};
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout_at},
};
use walgate_sink::{Secret, SinkError, text};

use crate::{
    SqsConfig,
    classify::{Answer, Trouble},
    queue, tls,
};

/// Time to connect at the most; less where an attempt has less.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// The longest wait that is taken from a `retry-after`; the lane bounds it further.
const MAX_RETRY_AFTER: u64 = 24 * 3600;

/// Makes the client at the first request, since the AWS configuration files and the network may be asked for it.
pub(crate) struct Connector {
    config: SqsConfig,
    http: aws_sdk_sqs::config::SharedHttpClient,
    timeout: Duration,
    client: OnceCell<Client>,
    secrets: Vec<Secret>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("place", &self.place()).finish_non_exhaustive()
    }
}

impl Connector {
    /// Reads the CA file; connects to nothing. `timeout` is that of an attempt.
    pub(crate) fn new(config: &SqsConfig, timeout: Duration) -> Result<Self, SinkError> {
        let context = tls::context(config.ca_file.as_deref(), !config.plain())?;
        // No proxy from the environment: the library asks for one only where it is told to.
        let http = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(context).build_https();
        let secrets = config.secrets();
        Ok(Connector { config: config.clone(), http, timeout, client: OnceCell::new(), secrets })
    }

    pub(crate) fn secrets(&self) -> &[Secret] {
        &self.secrets
    }

    /// Where SQS is, for texts.
    pub(crate) fn place(&self) -> String {
        match (&self.config.endpoint, self.region()) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Some(region)) => format!("SQS in {region}"),
            (None, None) => "SQS".to_owned(),
        }
    }

    fn region(&self) -> Option<&str> {
        self.config.region.as_deref().or_else(|| self.config.queue.as_deref().and_then(queue::region))
    }

    /// The client.
    pub(crate) async fn client(&self, deadline: Instant) -> Result<&Client, Trouble> {
        let made = timeout_at(deadline, self.client.get_or_try_init(|| self.make())).await;
        made.unwrap_or_else(|_| {
            Err(Trouble::Unusable("its settings were not there within the time of an attempt".into()))
        })
    }

    async fn make(&self) -> Result<Client, Trouble> {
        let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIME.min(self.timeout)).build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(self.http.clone())
            // The lane retries: it knows the order.
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            // The time of an attempt ends a stalled answer too.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if let Some(region) = self.region() {
            loader = loader.region(Region::new(region.to_owned()));
        }
        if let Some(profile) = &self.config.profile {
            loader = loader.profile_name(profile);
        }
        if let (Some(id), Some(secret)) = (&self.config.access_key_id, &self.config.secret_access_key) {
            let token = self.config.session_token.as_ref().map(|token| token.expose().trim().to_owned());
            loader = loader.credentials_provider(Credentials::new(
                id.expose().trim(),
                secret.expose().trim(),
                token,
                None,
                "walgate",
            ));
        }
        let shared = loader.load().await;
        if shared.region().is_none() {
            let advice = "no region is known: give `region`, or set AWS_REGION";
            return Err(Trouble::Unusable(advice.to_owned()));
        }
        // Only SQS's: roles are assumed where they are.
        let mut own = aws_sdk_sqs::config::Builder::from(&shared);
        if let Some(credentials) = self.assumed(&shared).await? {
            own = own.credentials_provider(credentials);
        }
        if let Some(endpoint) = &self.config.endpoint {
            own = own.endpoint_url(endpoint.trim_end_matches('/'));
        }
        Ok(Client::from_conf(own.build()))
    }

    /// The credentials at the end of the chain of roles; `None` without one. They are asked for when they are needed, and
    /// again before they end.
    async fn assumed(&self, shared: &SdkConfig) -> Result<Option<SharedCredentialsProvider>, Trouble> {
        if self.config.assume_roles.is_empty() {
            return Ok(None);
        }
        let nothing = || Trouble::NoCredentials("there are none to assume a role with".to_owned());
        let mut provider = shared.credentials_provider().ok_or_else(nothing)?;
        for role in &self.config.assume_roles {
            let mut next =
                AssumeRoleProvider::builder(&role.role_arn).session_name(&role.session_name).configure(shared);
            if let Some(id) = &role.external_id {
                next = next.external_id(id);
            }
            provider = SharedCredentialsProvider::new(next.build_from_provider(provider).await);
        }
        Ok(Some(provider))
    }

    /// What became of a request that brought no success.
    pub(crate) fn trouble<E>(&self, error: &SdkError<E>) -> Trouble
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        if let Some(why) = tls::certificate_fault(error) {
            return Trouble::Untrusted(why);
        }
        if has_source::<CredentialsError>(error) {
            return Trouble::NoCredentials(text::cause(error, &self.secrets));
        }
        match error {
            SdkError::ServiceError(context) => {
                let raw = context.raw();
                let header = |name| raw.headers().get(name).map(str::to_owned);
                let wait = header("retry-after").and_then(|text| text.trim().parse::<u64>().ok());
                Trouble::Answered(Answer {
                    status: raw.status().as_u16(),
                    code: context.err().code().unwrap_or_default().to_owned(),
                    message: context.err().message().unwrap_or_default().to_owned(),
                    date: header("date"),
                    retry_after: wait.map(|seconds| Duration::from_secs(seconds.min(MAX_RETRY_AFTER))),
                })
            }
            SdkError::ResponseError(context) => {
                let status = context.raw().status().as_u16();
                let message = text::cause(error, &self.secrets);
                // A success that cannot be read is none.
                Trouble::Answered(Answer {
                    status: if status < 400 { 500 } else { status },
                    message,
                    ..Answer::default()
                })
            }
            SdkError::TimeoutError(_) => Trouble::Silent,
            SdkError::ConstructionFailure(_) => Trouble::Unusable(text::cause(error, &self.secrets)),
            _ => Trouble::Broken(text::cause(error, &self.secrets)),
        }
    }
}

fn has_source<T: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<T>())
}
