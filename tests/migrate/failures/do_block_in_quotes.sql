do 'begin
  update orders set note = $$seen$$;
  perform 1 / 0;
end';
