-- name: undo_costs
-- For each settlement that is undone or being undone: market, operator, receivables and charges, in shillings.
-- A charge is found by its key, which contains the attempt's id. Indexes: attempts by settlement, transfers by key.
SELECT s.market_id, s.resolved_by_id, coalesce(r.amount, 0), coalesce(r.recovered, 0), coalesce(r.written_off, 0),
    coalesce(c.charges, 0)
FROM payments_settlement s
LEFT JOIN LATERAL (SELECT sum(amount) AS amount, sum(recovered) AS recovered, sum(written_off) AS written_off
    FROM payments_recovery WHERE settlement_id = s.id) r ON true
LEFT JOIN LATERAL (SELECT sum(f.amount) AS charges FROM payments_attempt a
    JOIN payments_transfer f ON f.key = 'charge:' || a.id WHERE a.settlement_id = s.id AND a.state = 'PAID') c
    ON true
WHERE s.state IN ('UNDOING', 'UNDONE');
