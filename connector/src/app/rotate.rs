//! The connector's own key, as the owner of the identity changes it: asked for, by its age, and once relays have proven it.
//!
//! Must never make a next key while another is under way.

use std::time::{Duration, Instant, SystemTime};

use culvert_model::key::PublicKey;
use culvert_ops::exit::Quit;

use super::App;
use crate::admin::Facts;
use crate::rotation::Do;

/// After a next key was refused, another is made so much later.
const ROTATE_AGAIN: Duration = Duration::from_secs(3600);

impl App {
    /// Makes a next key, which the links then make known; the one under way, if there is one.
    pub(super) async fn rotate(&mut self) -> Result<PublicKey, Quit> {
        let Some(member) = self.members.last() else { return Err(Quit::failed("this connector has not joined yet")) };
        if let Some(next) = self.shared.rotation.next() {
            return Ok(next.public_key());
        }
        let identity = member.identity.lock().await;
        let next = self.shared.store.make_next(&identity.joined, SystemTime::now())?;
        let key = next.public_key();
        tracing::info!(public_key = %key, "a next key was made");
        self.shared.rotation.begin(next);
        Ok(key)
    }

    /// Makes a next key when the present one is as old as it may become.
    pub(super) async fn rotate_by_age(&mut self) {
        let (Some(most), Some(member)) = (self.rotate_after, self.members.last()) else {
            return self.rotate_on().await;
        };
        let too_soon = self.rotate_not_before.is_some_and(|at| Instant::now() < at);
        if self.shared.rotation.is_under_way() || too_soon || !self.shared.board.is_any_up() {
            return self.rotate_on().await;
        }
        let made = member.identity.lock().await.joined.key_made();
        if SystemTime::now().duration_since(made).is_ok_and(|age| age >= most)
            && let Err(quit) = self.rotate().await
        {
            self.rotate_not_before = Some(Instant::now() + ROTATE_AGAIN);
            tracing::error!(error = quit.message, "no next key can be made");
        }
    }

    /// Lets the next key take over when the relays have proven that they know it.
    pub(super) async fn rotate_on(&mut self) {
        let Some(member) = self.members.last() else { return };
        let mut identity = member.identity.lock().await;
        match self.shared.rotation.poll(&identity, SystemTime::now()) {
            Do::Wait => {}
            Do::TakeOver => {
                let Some(next) = self.shared.rotation.next() else { return };
                if let Err(error) = self.shared.store.take_over(&mut identity, &next) {
                    tracing::error!(%error, "the next key cannot be put in place: the one before stays in use");
                    self.rotate_not_before = Some(Instant::now() + ROTATE_AGAIN);
                    return;
                }
                self.identity.send_replace(Some(Facts::of(&identity)));
                drop(identity);
                self.shared.rotation.end();
                tracing::info!(public_key = %next.public_key(), "the next key is in use");
            }
            Do::Drop(why) => {
                drop(identity);
                self.shared.store.drop_next();
                self.shared.rotation.end();
                self.rotate_not_before = Some(Instant::now() + ROTATE_AGAIN);
                tracing::warn!(why, "a relay refused the next key: the one before stays in use");
            }
        }
    }
}
