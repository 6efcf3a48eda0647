package index

import (
	"bytes"
	"cmp"
	"slices"
	"time"
)

// pending holds the rows of the newest leaves, in memory and searchable, until there are enough
// to be worth a transaction: keys are random, so a row alone costs a whole page of the file.
// A crash loses nothing, since the stored cursor is behind these leaves and they are read again.
type pending struct {
	rows   []indexRow
	byKey  map[keyHash][]uint64 // ascending
	leaves int
	since  time.Time // of the first
}

const (
	flushEntries = 4096        // pending leaves that make a transaction
	flushRows    = 1 << 17     // or rows
	flushAge     = time.Second // or time
)

func (p *pending) add(rows []indexRow, leaves int) {
	if p.leaves == 0 {
		p.since = time.Now()
		p.byKey = make(map[keyHash][]uint64)
	}
	p.leaves += leaves
	p.rows = append(p.rows, rows...)
	for _, row := range rows { // sorted by key and index
		p.byKey[row.key] = append(p.byKey[row.key], row.index)
	}
}

func (p *pending) clear() { *p = pending{} }

// drop forgets the rows of leaves below next, which are stored; left is how many leaves stay.
func (p *pending) drop(next uint64, left int) {
	rows := slices.DeleteFunc(p.rows, func(row indexRow) bool { return row.index < next })
	p.clear()
	if left > 0 {
		p.add(rows, left)
	}
}

func (p *pending) full() bool { return p.leaves >= flushEntries || len(p.rows) >= flushRows }

// newest returns copies of the newest max entries that have any of the keys, or all, ascending.
func (p *pending) newest(hashes []keyHash, all bool, max int) []uint64 {
	var found []uint64
	for i, hash := range hashes {
		list := p.byKey[hash]
		switch {
		case i == 0:
			found = slices.Clone(list)
		case all:
			found = slices.DeleteFunc(found, func(index uint64) bool {
				_, ok := slices.BinarySearch(list, index)
				return !ok
			})
		default:
			found = append(found, list...)
		}
	}
	return newest(found, max)
}

// indexRow is one row of index_keys.
type indexRow struct {
	key   keyHash
	index uint64
}

func (r indexRow) segment() uint64 { return r.index / segmentEntries }

// sortRows puts rows into the order of the primary key and drops repeated ones.
func sortRows(rows []indexRow) []indexRow {
	slices.SortFunc(rows, func(a, b indexRow) int {
		return cmp.Or(cmp.Compare(a.segment(), b.segment()), bytes.Compare(a.key[:], b.key[:]), cmp.Compare(a.index, b.index))
	})
	return slices.Compact(rows)
}
