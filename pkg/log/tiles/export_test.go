package tiles

import (
	"context"
	"sync"

	"github.com/transparency-dev/tessera"

	"github.com/attestry/attestry/pkg/log"
)

// Hold has the driver take what is there, and nothing that comes.
func (t *Tree) Hold() {
	t.tail.stop()
	<-t.tail.ended
}

// AddFirst has the driver take sub before what it is given next. Nothing may have been appended.
func (t *Tree) AddFirst(sub log.Submission) {
	add := t.driver.add
	var once sync.Once
	t.driver.add = func(ctx context.Context, s *log.Submission) tessera.IndexFuture {
		once.Do(func() { add(ctx, &sub) })
		return add(ctx, s)
	}
}
