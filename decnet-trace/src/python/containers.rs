//! Reading Python's containers from outside: dicts, sets, instances' attributes, modules.
//!
//! For `dump` only: looking a key up reads every key before it.

use super::{
    memory::{Memory, ReadError},
    objects::{ObjectError, Objects},
};

/// The most entries of a dict or set that are looked at.
const ENTRIES_MAX: u64 = 1 << 16;

/// The longest name of a type that is read, in bytes.
const TYPE_NAME_MAX: usize = 64;

/// `Py_TPFLAGS_INLINE_VALUES` (3.13 on), `Py_TPFLAGS_MANAGED_DICT` (3.11 on).
const INLINE_VALUES: u64 = 1 << 2;
const MANAGED_DICT: u64 = 1 << 4;

/// `PyModuleObject.md_dict`, the first field after the header in every version.
const MODULE_DICT: u32 = 16;

/// `dk_kind` of a dict whose keys are not all strings.
const KEYS_GENERAL: u8 = 0;

impl<M: Memory> Objects<'_, M> {
    /// The name of an object's type.
    pub(super) fn type_name(&self, object: u64) -> Result<String, ReadError> {
        let kind = self.pointer(object, self.layout.object_type)?;
        let name = self.pointer(kind, self.layout.type_name)?;
        let mut bytes = Vec::with_capacity(TYPE_NAME_MAX);
        for index in 0..TYPE_NAME_MAX as u64 {
            match self.memory.u8(name.wrapping_add(index))? {
                0 => break,
                byte => bytes.push(byte),
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The keys and values of a dict.
    pub(super) fn dict_items(&self, dict: u64) -> Result<Vec<(u64, u64)>, ObjectError> {
        let keys = self.pointer(dict, self.layout.dict_keys)?;
        let values = self.pointer(dict, self.layout.dict_values)?;
        self.key_items(keys, values)
    }

    /// The keys of a keys object with their values, which are in `values` where that is not 0.
    fn key_items(&self, keys: u64, values: u64) -> Result<Vec<(u64, u64)>, ObjectError> {
        let layout = self.layout;
        let malformed = ObjectError::Malformed("dict");
        let count = self.pointer(keys, layout.keys_entries)?;
        let (index_bytes, general) = if layout.minor() <= 10 {
            let size = self.pointer(keys, layout.keys_size)?;
            let width = match size {
                ..=0xff => 1,
                0x100..=0xffff => 2,
                0x1_0000..=0xffff_ffff => 4,
                _ => return Err(malformed),
            };
            (size * width, true)
        } else {
            let log2 = self
                .memory
                .u8(keys.wrapping_add(layout.keys_log2_index_bytes.into()))?;
            let kind = self.memory.u8(keys.wrapping_add(layout.keys_kind.into()))?;
            (
                1u64.checked_shl(log2.into()).ok_or(malformed)?,
                kind == KEYS_GENERAL,
            )
        };
        if count > ENTRIES_MAX {
            return Err(malformed);
        }
        // {hash, key, value}, or {key, value} where all keys are strings, which know their hash.
        let (width, key_at) = if general { (24, 8) } else { (16, 0) };
        let entries = keys
            .wrapping_add(u64::from(layout.keys_indices))
            .wrapping_add(index_bytes);
        let bytes = self.memory.bytes(entries, (count * width) as usize)?;
        let mut items = Vec::new();
        for (index, entry) in bytes.chunks_exact(width as usize).enumerate() {
            let word = |at: usize| {
                entry[at..]
                    .first_chunk()
                    .map_or(0, |b| u64::from_le_bytes(*b))
            };
            let key = word(key_at);
            let value = if values == 0 {
                word(key_at + 8)
            } else {
                // Up to 3.10 there are no values' headers: `values_items` is absent.
                let first = super::layout::Layout::get(layout.values_items).unwrap_or(0);
                self.memory
                    .u64(values.wrapping_add(first).wrapping_add(index as u64 * 8))?
            };
            if key != 0 && value != 0 {
                items.push((key, value));
            }
        }
        Ok(items)
    }

    /// The value of a dict's key that is a string.
    pub(super) fn dict_get(&self, dict: u64, name: &str) -> Result<Option<u64>, ObjectError> {
        Ok(self.find(&self.dict_items(dict)?, name))
    }

    fn find(&self, items: &[(u64, u64)], name: &str) -> Option<u64> {
        items
            .iter()
            .find(|(key, _)| self.string(*key).is_ok_and(|key| key == name))
            .map(|(_, value)| *value)
    }

    /// The attribute of a module.
    pub(super) fn module_attribute(
        &self,
        module: u64,
        name: &str,
    ) -> Result<Option<u64>, ObjectError> {
        self.dict_get(self.pointer(module, MODULE_DICT)?, name)
    }

    /// The attribute that an instance of a class written in Python has of its own.
    pub(super) fn attribute(&self, object: u64, name: &str) -> Result<Option<u64>, ObjectError> {
        let layout = self.layout;
        let kind = self.pointer(object, layout.object_type)?;
        let flags = self.pointer(kind, layout.type_flags)?;
        if layout.minor() <= 10 || flags & MANAGED_DICT == 0 {
            let offset = self.pointer(kind, layout.type_dictoffset)?;
            // Negative for types of variable size, which have none that matter here.
            return match self.memory.u64(object.wrapping_add(offset)) {
                Ok(dict) if dict != 0 && offset != 0 && offset < 1 << 16 => {
                    self.dict_get(dict, name)
                }
                _ => Ok(None),
            };
        }
        let keys = self.pointer(kind, layout.type_cached_keys)?;
        let (values, dict) = match layout.minor() {
            // Values 32 bytes before the object, the dict 24.
            11 => (
                self.memory.u64(object.wrapping_sub(32))?,
                self.memory.u64(object.wrapping_sub(24))?,
            ),
            // One word: a dict, or, one less than the address, values.
            12 => match self.memory.u64(object.wrapping_sub(24))? {
                word if word & 1 == 1 => (word.wrapping_add(1), 0),
                word => (0, word),
            },
            // The dict; else the values inside the object.
            _ => match self.memory.u64(object.wrapping_sub(24))? {
                0 if flags & INLINE_VALUES != 0 => (
                    object.wrapping_add(self.pointer(kind, layout.type_basicsize)?),
                    0,
                ),
                dict => (0, dict),
            },
        };
        match (values, dict) {
            (0, 0) => Ok(None),
            (0, dict) => self.dict_get(dict, name),
            (values, _) => Ok(self.find(&self.key_items(keys, values)?, name)),
        }
    }

    /// The elements of a set, and what may stand in the place of one that was removed.
    pub(super) fn set_items(&self, set: u64) -> Result<Vec<u64>, ObjectError> {
        let mask = self.pointer(set, self.layout.set_mask)?;
        let table = self.pointer(set, self.layout.set_table)?;
        if mask >= ENTRIES_MAX * 4 {
            return Err(ObjectError::Malformed("set"));
        }
        let bytes = self.memory.bytes(table, (mask as usize + 1) * 16)?;
        let keys = bytes.as_chunks::<16>().0.iter();
        let keys = keys.filter_map(|entry| entry.first_chunk().map(|key| u64::from_le_bytes(*key)));
        Ok(keys.filter(|key| *key != 0).collect())
    }

    /// A small `int` of 3.12 or newer, as the counter in a task's name.
    pub(super) fn small_int(&self, object: u64) -> Result<u32, ReadError> {
        // {object, tag, digits of 30 bits}
        self.memory.u32(object.wrapping_add(24))
    }
}
