"""What MRA's attention loses against dense attention on texts, and the budgets that lose least."""
