/* A library without functions: there by its name, and of no use. */
int weir_simulated_nothing;
