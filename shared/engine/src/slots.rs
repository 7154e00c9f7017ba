//! A table whose rows are found by number in one step; rows are reused, and each use of a row has its own generation.
//!
//! Must never panic on a number that it did not give.

/// Rows of `T`.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    rows: Vec<Row<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Row<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { rows: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// Puts what `make` returns into a free row; `make` is told the row and its generation. `None` past 2^24 rows.
    pub(crate) fn insert_with(&mut self, make: impl FnOnce(u32, u32) -> T) -> Option<u32> {
        const MOST: usize = 1 << 24;
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.rows.len() < MOST => {
                self.rows.push(Row { generation: 0, value: None });
                u32::try_from(self.rows.len() - 1).ok()?
            }
            None => return None,
        };
        let row = self.rows.get_mut(slot as usize)?;
        row.value = Some(make(slot, row.generation));
        Some(slot)
    }

    /// Empties a row.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<T> {
        let row = self.rows.get_mut(slot as usize)?;
        let value = row.value.take()?;
        row.generation = row.generation.wrapping_add(1);
        self.free.push(slot);
        Some(value)
    }

    #[inline]
    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        self.rows.get(slot as usize)?.value.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.rows.get_mut(slot as usize)?.value.as_mut()
    }

    /// Every row in use, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.rows.iter().filter_map(|row| row.value.as_ref())
    }

    /// Rows in use.
    pub(crate) fn len(&self) -> usize {
        self.rows.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_used_again_has_another_generation() {
        let mut slots = Slots::default();
        let first = slots.insert_with(|slot, generation| (slot, generation)).unwrap();
        assert_eq!(slots.remove(first), Some((0, 0)));
        assert_eq!(slots.remove(first), None);
        let second = slots.insert_with(|slot, generation| (slot, generation)).unwrap();
        assert_eq!(slots.get(second), Some(&(0, 1)));
        assert_eq!(slots.len(), 1);
        assert_eq!(slots.get(7), None);
    }
}
