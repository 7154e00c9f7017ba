//! A profile of the file that AWS's own tools keep credentials in (`~/.aws/credentials`).
//!
//! Must never run what a profile names (`credential_process`).

use culvert_ops::secret::Secret;
use http::HeaderValue;

use super::sign::Credentials;

/// Why a profile gives no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadProfile {
    /// No such section.
    #[error("has no profile {0:?}")]
    Missing(String),
    /// A section that says something else.
    #[error(
        "has no aws_access_key_id and aws_secret_access_key in profile {0:?}: roles, sso and processes are not followed here; use credentials = \"web-identity\" for a role"
    )]
    NoKeys(String),
    /// A key that no field may hold.
    #[error("has characters in profile {0:?} that no key has")]
    Malformed(String),
}

/// The credentials of a profile. Sections of a credentials file are `[NAME]`, of a config file `[profile NAME]`.
///
/// # Errors
/// [`BadProfile`]
pub fn read(text: &str, profile: &str) -> Result<Credentials, BadProfile> {
    let (mut is_ours, mut is_there) = (false, false);
    let [mut id, mut secret, mut token] = [None, None, None];
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with(['#', ';']) || line.is_empty() {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            let name = name.trim();
            is_ours = name == profile || name.strip_prefix("profile ").map(str::trim) == Some(profile);
            is_there |= is_ours;
            continue;
        }
        let Some((name, value)) = line.split_once('=').filter(|_| is_ours) else { continue };
        let place = match name.trim() {
            "aws_access_key_id" => &mut id,
            "aws_secret_access_key" => &mut secret,
            "aws_session_token" => &mut token,
            _ => continue,
        };
        *place = Some(value.trim()).filter(|value| !value.is_empty());
    }
    if !is_there {
        return Err(BadProfile::Missing(profile.to_owned()));
    }
    let (Some(id), Some(secret)) = (id, secret) else { return Err(BadProfile::NoKeys(profile.to_owned())) };
    Credentials::new(id, secret, token, None).ok_or_else(|| BadProfile::Malformed(profile.to_owned()))
}

impl Credentials {
    /// Such credentials; none for what no key or field can be.
    pub fn new(id: &str, secret: &str, token: Option<&str>, expires: Option<std::time::SystemTime>) -> Option<Self> {
        let is_word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let token = match token {
            Some(token) if is_word(token) => {
                let mut value = HeaderValue::from_str(token).ok()?;
                value.set_sensitive(true);
                Some(value)
            }
            Some(_) => return None,
            None => None,
        };
        (is_word(id) && is_word(secret)).then(|| Self {
            id: id.to_owned(),
            secret: Secret::new(secret),
            token,
            expires,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# made by aws configure\n[default]\naws_access_key_id = AKIADEFAULT\naws_secret_access_key=abc/+=\n\n\
        [ orders ]\n; temporary\naws_access_key_id=ASIAORDERS\naws_secret_access_key = def \naws_session_token = tok==\n\
        region = eu-west-1\n[profile role]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = default\n\
        [spaced]\naws_access_key_id = A B\naws_secret_access_key = c\n";

    #[test]
    fn each_profile_has_its_own_keys() {
        let default = read(FILE, "default").unwrap();
        assert_eq!((default.id.as_str(), default.secret.expose(), default.token), ("AKIADEFAULT", "abc/+=", None));
        let orders = read(FILE, "orders").unwrap();
        assert_eq!((orders.id.as_str(), orders.secret.expose()), ("ASIAORDERS", "def"));
        assert_eq!(orders.token.unwrap(), "tok==");
    }

    #[test]
    fn a_profile_without_keys_is_refused_by_kind() {
        let kind = |profile: &str| read(FILE, profile).unwrap_err();
        assert_eq!(kind("other"), BadProfile::Missing("other".to_owned()));
        assert_eq!(kind("role"), BadProfile::NoKeys("role".to_owned()));
        assert_eq!(kind("spaced"), BadProfile::Malformed("spaced".to_owned()));
        assert!(!kind("spaced").to_string().contains("A B"));
    }
}
