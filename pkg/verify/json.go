package verify

// UniqueKeys requires of valid JSON that no object has a key twice and that nothing is nested deeper than 64, for the formats
// of other packages. visit, which may be nil, is told each key with its depth (1 for the outermost object) and the outermost
// object's member that it is under.
func UniqueKeys(data []byte, visit func(depth int, member, name string) error) error {
	return uniqueKeys(data, visit)
}
