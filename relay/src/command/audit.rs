//! `audit`: who changed what, and when.
//!
//! Must never show more than the registry wrote down, which holds no secret.

use std::time::{Duration, SystemTime};

use culvert_ops::time::rfc3339;
use serde_json::json;

use super::table::{rough, table};
use super::view::View;
use super::{CommandError, Outcome};
use crate::registry::{Actor, AuditRow, Registry};

pub(super) async fn show(since: Duration, view: &View, registry: &dyn Registry) -> Result<Outcome, CommandError> {
    // Further back than time goes is the beginning.
    let from = view.now.checked_sub(since).unwrap_or(std::time::SystemTime::UNIX_EPOCH);
    let trail = registry.audit_since(from).await?;
    let json = trail.iter().map(|row| {
        json!({
            "time": rfc3339(row.at),
            "actor": row.actor,
            "action": row.action,
            "subject": row.subject,
            "detail": row.detail,
        })
    });
    let line = |row: &AuditRow| {
        [rfc3339(row.at), shown(&row.actor), shown(&row.action), shown(&row.subject), shown(&row.detail)]
    };
    let rows: Vec<_> = trail.iter().map(line).collect();
    Ok(Outcome::listing(json.collect(), table(["TIME", "WHO", "DID", "TO", "DETAIL"], &rows), || {
        format!("nothing was changed in the last {}: --since looks further back", rough(since))
    }))
}

/// That somebody takes a copy of the relay's keys.
pub(super) async fn note_backup(by: Actor, registry: &dyn Registry, at: SystemTime) -> Result<Outcome, CommandError> {
    let row = AuditRow {
        at,
        actor: by.0,
        action: "relay.backup".to_owned(),
        subject: "relay".to_owned(),
        detail: String::new(),
    };
    registry.audit(row).await?;
    Ok(Outcome { json: json!({ "noted": true }), ..Outcome::default() })
}

/// Part of it was said by others: nothing in it may move the reader's cursor.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
