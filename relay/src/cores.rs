//! How many threads a relay's shards run on.

use std::thread;

pub(crate) use culvert_ops::cores::{Cores, here};

/// As many threads as are worth it where nobody says: half of the processors that this process may use. The other half is
/// the gateway's beside it.
pub(crate) fn default_shards() -> u8 {
    // It heeds the affinity mask and the quota of the control group.
    let available = thread::available_parallelism().map_or(1, |count| count.get());
    u8::try_from((available / 2).clamp(1, MOST_BY_DEFAULT)).unwrap_or(1)
}

/// More would cost memory that few relays need.
const MOST_BY_DEFAULT: usize = 8;
