package log

import (
	"context"
	"time"
)

// refreshWait bounds how long Refresh waits for a tree that another process has signed. It is there within
// a moment, unless witnesses, the tree or its database keep this process from it.
const refreshWait = time.Second

// Refresh returns once the log shows what any process that shares it had signed when it was called: whoever was
// answered by one of them can go to another and read. Otherwise this one learns of a new tree a moment later, when
// the database tells it. It returns at once where no other process signs, and after a second, or when the fence
// cannot be read, with the tree that there is: old answers are better than none.
func (l *Log) Refresh(ctx context.Context) {
	if !l.key.shared || l.Ready() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, refreshWait)
	defer cancel()
	record, err := l.key.fence.Last(ctx, l.key.id)
	if err != nil || record.Size <= l.Checkpoint().Size {
		return
	}
	l.poke()
	_ = l.Wait(ctx, record.Size-1)
}
