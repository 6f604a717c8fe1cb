//! ACPI tables: where the guest finds its HPET, its PM timer and its off switch.
//!
//! RSDP, XSDT, FADT, FACS, DSDT, HPET (ACPI 6.5, section 5.2; IA-PC HPET Specification 1.0a, section 3.2.4). There is no
//! MADT, since there is no APIC: an operating system takes the 8259 then.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::machine::devices::{hpet, pm1, pmtimer};

/// Where the tables lie: the RSDP is looked for on 16-byte boundaries from 0xe0000 to 0xfffff.
pub(super) const ADDRESS: u64 = 0xe_0000;

const OEM: &[u8; 6] = b"TANDEM";
const OEM_TABLE: &[u8; 8] = b"TANDEMVM";
const CREATOR: &[u8; 4] = b"TNDM";
/// Where the checksum is in the header that most tables begin with.
const CHECKSUM: usize = 9;

/// `Name (\_S5, Package () { 5, 5, 0, 0 })`: what to write to PM1a's SLP_TYP for soft-off (ACPI 6.5, sections 7.4.2
/// and 20.2).
const S5: [u8; 14] = [0x08, b'_', b'S', b'5', b'_', 0x12, 0x08, 0x04, 0x0a, 5, 0x0a, 5, 0x00, 0x00];

/// The System Control Interrupt's line, which no device has: Linux asks PM1 at each interrupt of it. It is never raised.
const SCI: u8 = 15;

/// Fixed feature flags: WBINVD works, HLT is a C1 state; neither a power nor a sleep button in hardware.
const FLAGS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 5;
/// IA-PC boot architecture flags: devices of the ISA bus, an 8042; no VGA, no MSI, no PCI Express ASPM.
const ARCHITECTURE: u16 = 0b1_1111;

/// Bytes, written down in the order of the fields.
#[derive(Default)]
struct Table(Vec<u8>);

impl Table {
    fn new(signature: &[u8; 4], revision: u8) -> Self {
        let mut table = Self::default();
        // Length and checksum come last.
        table.put(signature).put(&[0; 4]).put(&[revision, 0]).put(OEM).put(OEM_TABLE);
        table.put(&1u32.to_le_bytes()).put(CREATOR).put(&1u32.to_le_bytes());
        table
    }

    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn set(&mut self, offset: usize, bytes: &[u8]) -> &mut Self {
        if self.0.len() < offset + bytes.len() {
            self.0.resize(offset + bytes.len(), 0);
        }
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The whole table, its length told in its header and its bytes adding up to zero.
    fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.set(4, &len.to_le_bytes());
        self.0[CHECKSUM] = complement(&self.0);
        self.0
    }
}

/// What makes the sum of all bytes zero.
fn complement(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn facs() -> Vec<u8> {
    let mut facs = Table::default();
    // Signature and length; version 2 at byte 32. No checksum.
    facs.put(b"FACS").put(&64u32.to_le_bytes()).set(32, &[2]).set(63, &[0]);
    facs.0
}

fn dsdt() -> Vec<u8> {
    let mut dsdt = Table::new(b"DSDT", 2);
    dsdt.put(&S5);
    dsdt.finish()
}

fn fadt(facs: u64, dsdt: u64) -> Vec<u8> {
    let mut fadt = Table::new(b"FACP", 6);
    let port = |port: u16| u32::from(port).to_le_bytes();
    fadt.put(&(facs as u32).to_le_bytes()).put(&(dsdt as u32).to_le_bytes());
    fadt.set(46, &u16::from(SCI).to_le_bytes());
    // SMI_CMD is zero: there is no other mode than ACPI's.
    fadt.set(56, &port(pm1::EVENT_PORT)).set(64, &port(pm1::CONTROL_PORT)).set(76, &port(pmtimer::PORT));
    // PM1_EVT_LEN, PM1_CNT_LEN, PM2_CNT_LEN, PM_TMR_LEN.
    fadt.set(88, &[4, 2, 0, 4]);
    // P_LVL2_LAT and P_LVL3_LAT: no C2, no C3.
    fadt.set(96, &101u16.to_le_bytes()).set(98, &1001u16.to_le_bytes());
    fadt.set(109, &ARCHITECTURE.to_le_bytes()).set(112, &FLAGS.to_le_bytes());
    // FADT minor version 5; all X_ fields zero, so that those of 32 bits count.
    fadt.set(131, &[5]).set(275, &[0]);
    fadt.finish()
}

fn hpet_table() -> Vec<u8> {
    let mut table = Table::new(b"HPET", 1);
    table.put(&(hpet::CAPABILITIES as u32).to_le_bytes());
    // A generic address: system memory, 64 bits wide.
    table.put(&[0, 64, 0, 0]).put(&hpet::ADDRESS.to_le_bytes());
    // HPET number; least count of a comparator in periodic mode, which there is none of; a page of its own.
    table.put(&[0]).put(&0u16.to_le_bytes()).put(&[1]);
    table.finish()
}

fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut rsdp = Table::default();
    rsdp.put(b"RSD PTR ").put(&[0]).put(OEM).put(&[2]).put(&[0; 4]).put(&36u32.to_le_bytes());
    rsdp.put(&xsdt.to_le_bytes()).put(&[0; 4]);
    // The first 20 bytes have a sum of their own.
    rsdp.0[8] = complement(&rsdp.0[..20]);
    rsdp.0[32] = complement(&rsdp.0);
    rsdp.0
}

/// Writes the tables; `has_hpet`: with the one of the HPET. Returns the RSDP's address.
pub(super) fn write_tables(memory: &GuestMemoryMmap, has_hpet: bool) -> Result<u64, GuestMemoryError> {
    // The RSDP, then the FACS on a boundary of 64 bytes, then the rest.
    let facs_at = ADDRESS + 64;
    memory.write_slice(&facs(), GuestAddress(facs_at))?;
    let mut next = facs_at + 64;
    let mut write = |table: &[u8]| {
        let at = next;
        next = (at + table.len() as u64).next_multiple_of(16);
        memory.write_slice(table, GuestAddress(at)).map(|()| at)
    };
    let dsdt_at = write(&dsdt())?;
    let mut tables = vec![write(&fadt(facs_at, dsdt_at))?];
    if has_hpet {
        tables.push(write(&hpet_table())?);
    }
    let mut xsdt = Table::new(b"XSDT", 1);
    for table in tables {
        xsdt.put(&table.to_le_bytes());
    }
    let xsdt_at = write(&xsdt.finish())?;
    memory.write_slice(&rsdp(xsdt_at), GuestAddress(ADDRESS))?;
    Ok(ADDRESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a table's header.
    const HEADER: usize = 36;

    fn bytes(memory: &GuestMemoryMmap, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn number(bytes: &[u8]) -> u64 {
        bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// A table with a header, whole.
    fn table(memory: &GuestMemoryMmap, at: u64) -> Vec<u8> {
        let len = number(&bytes(memory, at + 4, 4)) as usize;
        let table = bytes(memory, at, len);
        assert_eq!(sum(&table), 0);
        table
    }

    #[test]
    fn a_guest_finds_its_way_through_them() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        for has_hpet in [true, false] {
            let rsdp = bytes(&memory, write_tables(&memory, has_hpet).unwrap(), 36);
            assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(&rsdp)), (&b"RSD PTR "[..], 0, 0));
            let xsdt = table(&memory, number(&rsdp[24..32]));
            assert_eq!(&xsdt[..4], b"XSDT");
            let tables: Vec<_> =
                xsdt[HEADER..].chunks(8).map(|entry| table(&memory, number(entry))).collect();
            assert_eq!(tables.len(), 1 + usize::from(has_hpet));
            let fadt = &tables[0];
            assert_eq!((&fadt[..4], fadt.len()), (&b"FACP"[..], 276));
            let facs = bytes(&memory, number(&fadt[36..40]), 64);
            assert_eq!((&facs[..4], number(&facs[4..8]), number(&fadt[36..40]) % 64), (&b"FACS"[..], 64, 0));
            assert_eq!(table(&memory, number(&fadt[40..44]))[HEADER..], S5);
            let ports = [56, 64, 76].map(|at| number(&fadt[at..at + 4]));
            assert_eq!(ports, [0x600, 0x604, 0x608]);
            if let Some(hpet) = tables.get(1) {
                assert_eq!((&hpet[..4], hpet.len(), number(&hpet[44..52])), (&b"HPET"[..], 56, 0xfed0_0000));
            }
        }
    }
}
