//! Relays that do not know this connector yet: whichever other relay it has a session with makes it known to them.
//!
//! Must never ask two relays for the same at once, or keep a wish that nobody waits for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use culvert_model::key::PublicKey;
use tokio::sync::{oneshot, watch};

/// All wishes of this process. Clones share them.
#[derive(Debug, Clone)]
pub struct Introductions {
    wishes: Arc<Mutex<Vec<Wish>>>,
    news: Arc<watch::Sender<u64>>,
}

/// What a relay answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduced {
    /// The connector's key that was made known.
    pub public_key: PublicKey,
    /// The other relay's key, to which the pre-shared key is bound.
    pub relay_key: PublicKey,
    /// The ML-KEM ciphertext, base64.
    pub ciphertext: String,
    /// The epoch of the pre-shared key.
    pub psk_epoch: u32,
}

#[derive(Debug)]
struct Wish {
    /// The relay that does not know us.
    tag: String,
    kem_key: String,
    /// The name of the relay that was asked.
    asked: Option<String>,
    answer: oneshot::Sender<Introduced>,
}

impl Default for Introductions {
    fn default() -> Self {
        Self { wishes: Arc::default(), news: Arc::new(watch::Sender::new(0)) }
    }
}

impl Introductions {
    /// Waits until some relay has made this connector known to the relay with this tag. Cancel safe: the wish is dropped.
    pub async fn wish(&self, tag: &str, kem_key: String) -> Introduced {
        let (answer, answered) = oneshot::channel();
        let wish = Wish { tag: tag.to_owned(), kem_key, asked: None, answer };
        {
            let mut wishes = self.lock();
            wishes.retain(|wish| wish.tag != tag && !wish.answer.is_closed());
            wishes.push(wish);
        }
        self.news.send_modify(|version| *version += 1);
        match answered.await {
            Ok(introduced) => introduced,
            // A later wish for the same relay took its place.
            Err(_) => std::future::pending().await,
        }
    }

    /// Tells when there may be something to ask for.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// What the session with the relay of that name is to ask for now: tags and encapsulation keys.
    pub fn take(&self, by: &str) -> Vec<(String, String)> {
        let mut wishes = self.lock();
        wishes.retain(|wish| !wish.answer.is_closed());
        let open = wishes.iter_mut().filter(|wish| wish.asked.is_none());
        let taken = open.map(|wish| {
            wish.asked = Some(by.to_owned());
            (wish.tag.clone(), wish.kem_key.clone())
        });
        taken.collect()
    }

    /// A relay answered.
    pub fn answered(&self, tag: &str, introduced: Introduced) {
        let mut wishes = self.lock();
        if let Some(at) = wishes.iter().position(|wish| wish.tag == tag) {
            // Whoever wished may be gone.
            let _ = wishes.swap_remove(at).answer.send(introduced);
        }
    }

    /// The session with the relay of that name is over, or it cannot do that: another may be asked.
    pub fn released(&self, by: &str) {
        let mut any = false;
        for wish in self.lock().iter_mut().filter(|wish| wish.asked.as_deref() == Some(by)) {
            (wish.asked, any) = (None, true);
        }
        if any {
            self.news.send_modify(|version| *version += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Wish>> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use culvert_model::key::PrivateKey;
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_relay_is_asked_at_a_time_and_the_next_when_its_session_is_over() {
        let introductions = Introductions::default();
        let mut news = introductions.news();
        let wishing = introductions.clone();
        let wish = tokio::spawn(async move { wishing.wish("tb", "key".to_owned()).await });
        news.changed().await.unwrap();
        assert_eq!(introductions.take("a"), [("tb".to_owned(), "key".to_owned())]);
        assert!(introductions.take("c").is_empty());
        news.mark_unchanged();
        introductions.released("a");
        news.changed().await.unwrap();
        assert_eq!(introductions.take("c").len(), 1);
        introductions.answered("another", answer());
        introductions.answered("tb", answer());
        assert_eq!(wish.await.unwrap(), answer());
        assert!(introductions.take("a").is_empty());
    }

    #[tokio::test]
    async fn a_wish_that_nobody_waits_for_is_not_asked_for() {
        let introductions = Introductions::default();
        let wish = introductions.wish("tb", "key".to_owned());
        assert_eq!(wish.now_or_never(), None, "nobody answered");
        assert!(introductions.take("a").is_empty());
    }

    fn answer() -> Introduced {
        let key = PrivateKey::from_bytes([1; 32]).public_key();
        Introduced { public_key: key, relay_key: key, ciphertext: String::new(), psk_epoch: 1 }
    }
}
