//! The settings of a service's `auth` table: one list for every program that has such tables.
//!
//! Must never say what a value means: that is its type's file's.

#[doc(hidden)]
pub use culvert_ops::config::{Kind, Setting};

/// They, as a slice, where the table stands at this key.
#[macro_export]
macro_rules! auth_settings {
    ($prefix:literal) => {{
        use $crate::auth::settings::{Kind, Setting};
        const ROWS: &[Setting] = &[
            Setting::new(
                concat!($prefix, ".type"),
                Kind::Choice(&["jwt", "entra-id", "gcp-id-token", "gcp-service-account", "aws-sigv4", "http-signature"]),
                "how a request is proven to have come through here",
            ),
            Setting::new(
                concat!($prefix, ".algorithm"),
                Kind::Choice(&["EdDSA", "ES256", "RS256", "hmac-sha256", "ed25519", "ecdsa-p256-sha256"]),
                "what is signed with: EdDSA (jwt, by default), ES256 or RS256; the others are for http-signature",
            ),
            Setting::new(concat!($prefix, ".audience"), Kind::Text, "aud: whom they are for"),
            Setting::new(concat!($prefix, ".issuer"), Kind::Url, "iss, in place of what the relay's [issuer] says"),
            Setting::new(concat!($prefix, ".subject"), Kind::Text, "sub (TUNNEL/SERVICE)"),
            Setting::new(
                concat!($prefix, ".lifetime"),
                Kind::Duration,
                "how long a token or signature is valid: 10s to 1h (5m)",
            ),
            Setting::new(concat!($prefix, ".header"), Kind::Text, "the field that it goes in (authorization)"),
            Setting::new(
                concat!($prefix, ".prefix"),
                Kind::Text,
                "what stands before it there (\"Bearer \" in authorization)",
            ),
            Setting::new(
                concat!($prefix, ".bind"),
                Kind::Choice(&["none", "request"]),
                "request: a token of its own for each request, for its method and path alone",
            ),
            Setting::new(concat!($prefix, ".claims.*"), Kind::Text, "more claims"),
            Setting::new(concat!($prefix, ".tenant"), Kind::Text, "Entra ID's directory: its id or a domain"),
            Setting::new(concat!($prefix, ".client_id"), Kind::Text, "the application that asks Entra ID"),
            Setting::new(concat!($prefix, ".scope"), Kind::Text, "what for, as api://APPLICATION/.default"),
            Setting::new(concat!($prefix, ".resource"), Kind::Text, "what for, as endpoints of version 1 have it"),
            Setting::new(
                concat!($prefix, ".client_secret"),
                Kind::Secret,
                "how the application proves itself: by this,",
            ),
            Setting::new(
                concat!($prefix, ".certificate"),
                Kind::Path,
                "or by a certificate that was uploaded, and its key,",
            ),
            Setting::new(concat!($prefix, ".federated"), Kind::Bool, "or by a token of this connector"),
            Setting::new(
                concat!($prefix, ".key"),
                Kind::Secret,
                "the certificate's RSA key (PEM), a Google service account's key file (JSON), or what http-signature signs with",
            ),
            Setting::new(
                concat!($prefix, ".provider"),
                Kind::Text,
                "the workload identity pool's provider that takes a token of this connector",
            ),
            Setting::new(concat!($prefix, ".service_account"), Kind::Text, "the account that it may then speak for"),
            Setting::new(
                concat!($prefix, ".provider_audience"),
                Kind::Text,
                "aud of that token, where the provider wants another",
            ),
            Setting::new(
                concat!($prefix, ".metadata"),
                Kind::Bool,
                "ask the metadata server: on a machine of Google Cloud",
            ),
            Setting::new(
                concat!($prefix, ".endpoint"),
                Kind::Url,
                "where tokens or credentials are asked for, in place of the cloud's own",
            ),
            Setting::new(
                concat!($prefix, ".impersonation_endpoint"),
                Kind::Url,
                "in place of https://iamcredentials.googleapis.com",
            ),
            Setting::new(concat!($prefix, ".ca"), Kind::Path, "authorities to trust there in place of the system's"),
            Setting::new(
                concat!($prefix, ".encoding"),
                Kind::Choice(&["text", "base64"]),
                "how a shared secret is written (text)",
            ),
            Setting::new(
                concat!($prefix, ".keyid"),
                Kind::Text,
                "what a signature calls its key (culvert; the connector's own: its kid)",
            ),
            Setting::new(
                concat!($prefix, ".label"),
                Kind::Text,
                "what the signature is called in its fields (culvert)",
            ),
            Setting::new(
                concat!($prefix, ".components"),
                Kind::List(&Kind::Text),
                "what it covers, where a request has it: @method, @target-uri, @authority, @scheme, @request-target, @path, @query, fields",
            ),
            Setting::new(concat!($prefix, ".nonce"), Kind::Bool, "whether each signature has a nonce (true)"),
            Setting::new(concat!($prefix, ".tag"), Kind::Text, "what a signature says it is for"),
            Setting::new(
                concat!($prefix, ".digest"),
                Kind::Choice(&["sha-256", "none"]),
                "whether bodies are signed too, by Content-Digest (sha-256); none: they stream past unread",
            ),
            Setting::new(
                concat!($prefix, ".payload_limit"),
                Kind::Size,
                "the longest body that is read for its proof: 1 to 64MiB (1MiB)",
            ),
            Setting::new(
                concat!($prefix, ".service"),
                Kind::Text,
                "the AWS service that aws-sigv4 signs for, as execute-api or lambda",
            ),
            Setting::new(concat!($prefix, ".region"), Kind::Text, "its region (AWS_REGION)"),
            Setting::new(
                concat!($prefix, ".credentials"),
                Kind::Choice(&["environment", "profile", "web-identity", "container", "instance"]),
                "where AWS credentials come from; by default the first of these that is there",
            ),
            Setting::new(
                concat!($prefix, ".access_key_id"),
                Kind::Secret,
                "an AWS access key, in place of `credentials`",
            ),
            Setting::new(concat!($prefix, ".secret_access_key"), Kind::Secret, "its secret"),
            Setting::new(concat!($prefix, ".session_token"), Kind::Secret, "its token, if it is a temporary one"),
            Setting::new(concat!($prefix, ".profile"), Kind::Text, "the profile (AWS_PROFILE, or default)"),
            Setting::new(concat!($prefix, ".profile_file"), Kind::Path, "where it is (~/.aws/credentials)"),
            Setting::new(
                concat!($prefix, ".role_arn"),
                Kind::Text,
                "the AWS role to take for the connector's own token, by STS",
            ),
            Setting::new(
                concat!($prefix, ".session_name"),
                Kind::Text,
                "what the role's session is called in AWS's logs (culvert)",
            ),
            Setting::new(
                concat!($prefix, ".session_lifetime"),
                Kind::Duration,
                "how long the role is lent: 15m to 12h (1h)",
            ),
            Setting::new(
                concat!($prefix, ".token_file"),
                Kind::Path,
                "the token to take it for, in place of the connector's own",
            ),
            Setting::new(
                concat!($prefix, ".payload"),
                Kind::Choice(&["signed", "unsigned", "chunked"]),
                "whether bodies are signed (signed); unsigned for services that take it, chunked for S3: these stream",
            ),
            Setting::new(
                concat!($prefix, ".signed_headers"),
                Kind::List(&Kind::Text),
                "fields that are signed beside those that must be",
            ),
        ];
        ROWS
    }};
}
