package journal

// Writing has w make bytes durable instead, which may call real for it.
func (j *Journal) Writing(w func(b []byte, at int64, real func([]byte, int64) error) error) {
	real := writer(j.file)
	j.write = func(b []byte, at int64) error { return w(b, at, real) }
}

// Crash gives up the file and its lock as the end of a process does.
func (j *Journal) Crash() { j.file.Close() }

const FrameHead = frameHead

// Place writes a frame into the bytes of a ring.
func Place(raw []byte, page int, number, before, freed uint64, payload []byte) {
	n, err := parseHead(raw)
	if err != nil {
		panic(err)
	}
	copy(raw[page*pageBytes:], n.marshal(Frame{Number: number, before: before, freed: freed}, payload))
}

// Links returns the numbers of f, the frame before it, and the last that was free.
func Links(f Frame) (number, before, freed uint64) { return f.Number, f.before, f.freed }
